"""How large and how often a model may ask for anything: a few bytes of JSON must not cost a machine its day.

Whatever Keras counts, loops over or reserves memory for by a number in the JSON has a limit here. What depends on
shapes that only Keras works out (outputs, parameters, the cost of an initializer) is looked at where a model is built.
"""

import math
from collections.abc import Iterator
from typing import Any

from broker.errors import ModelError

MAX_LAYERS = 2000
MAX_CALLS = 10_000  #: layers called, each as often as it is, with what is inside of it
MAX_METRICS = 100
MAX_INPUT_ELEMENTS = 64 * 1024 * 1024  #: numbers in one example
MAX_WIDTH = 2**20  #: units, filters or the like of one layer, and any number that has no limit of its own
MAX_KERNEL = 2**16  #: points of one kernel: 256 × 256, or 40 × 40 × 40
MAX_ORTHOGONAL = (
    4096  #: units or filters of a layer with an orthogonal initializer: it takes their square, or cube
)
_MAX_INTEGER = 2**31


def _words(text: str) -> list[str]:
    return text.split()


def _each(limit: int, names: str) -> dict[str, int]:
    return dict.fromkeys(_words(names), limit)


#: The largest number that may stand under a key, alone or in lists.
_LIMITS: dict[str, int] = {
    **_each(100, "power_iterations ns_steps"),  # loops that are written out in the graph
    **_each(1000, "steps_per_execution"),  # nothing stops a training in between
    **_each(1024, "num_heads num_query_heads num_key_value_heads kernel_size"),
    **_each(4096, "num_classes num_mel_bins pool_size strides dilation_rate size output_size output_padding"),
    **_each(10_000, "num_thresholds num_labels"),
    **_each(16_384, "height width cropping padding"),
    **_each(65_536, "bins num_bins fft_length frame_length frame_step sequence_length sequence_stride"),
    **_each(
        MAX_WIDTH,
        """
        units filters input_dim output_dim key_dim value_dim head_dim depth_multiplier num_tokens n groups
        lora_rank num_regressors k top_k sliding_window gradient_accumulation_steps ema_overwrite_frequency
        """,
    ),
}
#: How many values a list may have, where Keras makes a step of the graph of each.
_LENGTHS: dict[str, int] = {
    **_each(1000, "boundaries"),
    **_each(10_000, "thresholds label_weights target_class_ids"),
    **_each(65_536, "bin_boundaries"),
}
#: Numbers that are values and no counts: as large as a number may be.
_VALUES = frozenset(
    _words(
        """
        seed decay_steps first_decay_steps warmup_steps boundaries values value mean variance scale offset mask_value
        bin_boundaries fill_value value_range max_value min_value threshold thresholds ignore_class
        vocabulary idf_weights mask_token oov_token salt
        """
    )
)
_ORTHOGONAL = frozenset({"orthogonal", "orthogonalinitializer"})
_MODELS = frozenset({"Sequential", "Functional", "Model"})
_COPIES = {"Bidirectional": 3}  # it is made anew for each direction, and once to copy from


def check_numbers(name: str, config: dict[str, Any]) -> None:
    """Check every number that a built-in object is made with.

    Args:
        name: Of its class.
        config: Of the object.

    Raises:
        ModelError: Names the layer, the number and the limit.
    """
    called = f"{name} {config['name']!r}" if isinstance(config.get("name"), str) else name
    for key, value in config.items():
        _check_number(called, key, value)
    if config.get("unroll"):
        raise refused(
            f"unroll = {config['unroll']!r:.20} in {called}", "unroll = False: a loop, not its steps"
        )
    _check_kernel(called, config.get("kernel_size"))
    _check_orthogonal(called, config)


def _check_number(called: str, key: str, value: Any) -> None:
    if key in _LENGTHS and isinstance(value, list) and len(value) > _LENGTHS[key]:
        raise refused(f"{len(value)} {key} in {called}", f"at most {_LENGTHS[key]}")
    if key in _VALUES or key.endswith("shape"):  # shapes are checked by what they multiply to
        return
    limit = _LIMITS.get(key, MAX_WIDTH)
    for number in _leaves(value):
        if isinstance(number, dict) and key in _LIMITS:
            raise refused(f"{key} = {number!r:.40} in {called}", "a plain number")
        if isinstance(number, int | float) and abs(number) > limit and _is_count(key, number):
            raise refused(f"{key} = {number} in {called}", f"at most {limit}")


def _is_count(key: str, number: float) -> bool:
    """Of a key without a limit of its own only whole numbers count, or loop."""
    return key in _LIMITS or isinstance(number, int)


def _leaves(value: Any) -> Iterator[Any]:
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending.extend(each)
        else:
            yield each


def _check_kernel(called: str, size: Any) -> None:
    points = math.prod(number for number in _leaves(size) if isinstance(number, int))
    if isinstance(size, list) and points > MAX_KERNEL:
        raise refused(f"kernel_size = {size} in {called}", f"at most {MAX_KERNEL} points")


def _check_orthogonal(called: str, config: dict[str, Any]) -> None:
    width = max(
        (config[key] for key in ("units", "filters", "output_dim") if _is_whole(config.get(key))), default=0
    )
    given = [value for key, value in config.items() if key.endswith("_initializer")]
    if "recurrent_activation" in config or "recurrent_dropout" in config:
        given.append(config.get("recurrent_initializer", "orthogonal"))  # Keras's default
    if width > MAX_ORTHOGONAL and any(map(_is_orthogonal, given)):
        raise refused(
            f"{width} units with an orthogonal initializer in {called}", f"at most {MAX_ORTHOGONAL}"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int)


def _is_orthogonal(initializer: Any) -> bool:
    """Whether an initializer, by name or as an object, is Keras's orthogonal one."""
    name = initializer.get("class_name") if isinstance(initializer, dict) else initializer
    return isinstance(name, str) and name.replace("_", "").lower() in _ORTHOGONAL


def check_steps(settings: dict[str, Any]) -> None:
    """Check the numbers of the compile settings.

    Raises:
        ModelError: So many steps in one call that a training could not be stopped, or more metrics than anyone reads.
    """
    for key, value in settings.items():
        _check_number("the compile settings", key, value)
    for key in ("metrics", "weighted_metrics"):
        number = sum(1 for _ in _leaves(settings.get(key)))
        if number > MAX_METRICS:
            raise refused(f"{number} {key}", f"at most {MAX_METRICS}")


def check_calls(model: dict[str, Any]) -> None:
    """Count the calls of layers, with those inside of models that are called in turn: few lines can mean billions.

    Args:
        model: A config that is nested no deeper than allowed, of objects that are allowed.

    Raises:
        ModelError: They are too many.
    """
    if _calls_of(model) > MAX_CALLS:
        raise refused(
            f"more than {MAX_CALLS} calls of layers", "fewer, those of models inside of models counted in"
        )


def _calls_of(item: Any) -> int:
    """Of this value and all inside of it, as often as it is called itself."""
    if isinstance(item, list):
        return sum(map(_calls_of, item))
    if not isinstance(item, dict):
        return 0
    inside = sum(_calls_of(value) for key, value in item.items() if key != "compile_config")
    nodes, config = item.get("inbound_nodes"), item.get("config")
    is_called = isinstance(nodes, list) or item.get("module") == "keras.layers"
    if not is_called and item.get("class_name") not in _MODELS:
        return inside
    times = max(1, len(nodes)) if isinstance(nodes, list) else 1
    loops = config.get("power_iterations", 1) if isinstance(config, dict) else 1
    copies = _COPIES.get(str(item.get("class_name")), 1) * (loops if isinstance(loops, int) else 1)
    return times * max(1, copies) * (1 + inside)


def check_shapes(item: dict[str, Any]) -> None:
    """Check what every shape in a part of the JSON multiplies to.

    Raises:
        ModelError: To more than one example may have.
    """
    for key, value in item.items():
        if key.endswith("shape") and isinstance(value, list) and _elements(value) > MAX_INPUT_ELEMENTS:
            raise refused(f"{key} {value}", f"at most {MAX_INPUT_ELEMENTS} numbers in one example")


def _elements(shape: list[Any]) -> int:
    return math.prod(abs(size) for size in shape if isinstance(size, int) and size != 0)


def check_integer(number: int) -> None:
    """Check any whole number, wherever it stands.

    Raises:
        ModelError: It is no number that Keras takes.
    """
    if abs(number) >= _MAX_INTEGER:
        raise refused(f"the number {number}", "numbers below 2^31")


def refused(received: str, expected: str) -> ModelError:
    """The error of what a model may not hold, in the words of all such errors."""
    return ModelError(
        f"The model holds {received}, which Warren does not run. Expected {expected}. "
        "Try a model of built-in Keras parts, saved by Keras 3."
    )
