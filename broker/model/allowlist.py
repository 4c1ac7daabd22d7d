"""What a model may be made of, so that a worker never builds what its maker could abuse; needs no TensorFlow.

A Keras model travels as JSON, and building one from JSON can import any class by name, unpickle a Lambda or
read a file. So every object in the JSON must be a built-in named here, and every size one that a machine can
hold. Both sides check: the coordinator when a run starts, so that no worker has to refuse, and the worker,
which trusts nobody.
"""

import json
from collections.abc import Iterator
from typing import Any

from broker.errors import ModelError
from broker.model.limits import (
    MAX_LAYERS,
    check_calls,
    check_integer,
    check_numbers,
    check_shapes,
    check_steps,
    refused,
)
from broker.model.trust import NOTHING, Trusted

MAX_JSON_BYTES = 16 * 1024 * 1024  #: the longest text that a message carries
MAX_DEPTH = 100  #: levels of JSON; one model inside another takes about four


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LAYERS = _names(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AutoContrast Average AveragePooling1D AveragePooling2D
    AveragePooling3D BatchNormalization Bidirectional CategoryEncoding CenterCrop Concatenate Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D
    Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot
    Dropout ELU EinsumDense Embedding Equalization Flatten GRU GRUCell GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
    GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer
    LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D
    Maximum MelSpectrogram Minimum MultiHeadAttention Multiply Normalization PReLU Permute
    RMSNormalization RNN RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast
    Hashing IntegerLookup RandomCrop RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert
    RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness
    RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
    STFTSpectrogram SeparableConv1D SeparableConv2D SimpleRNN SimpleRNNCell Softmax Solarization
    SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells StringLookup
    Subtract TextVectorization TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D
    ZeroPadding2D ZeroPadding3D
    """
)
_LOSS_CLASSES = _names(
    """
    BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy CategoricalFocalCrossentropy
    CategoricalGeneralizedCrossEntropy CategoricalHinge CosineSimilarity Dice Hinge Huber
    KLDivergence LogCosh MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError
    MeanSquaredLogarithmicError Poisson SparseCategoricalCrossentropy SquaredHinge Tversky
    """
)
_METRIC_CLASSES = _names(
    """
    AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy
    CategoricalCrossentropy CategoricalHinge CosineSimilarity F1Score FBetaScore FalseNegatives
    FalsePositives Hinge IoU KLDivergence LogCoshError Mean MeanAbsoluteError
    MeanAbsolutePercentageError MeanIoU MeanSquaredError MeanSquaredLogarithmicError OneHotIoU
    OneHotMeanIoU Poisson Precision PrecisionAtRecall R2Score Recall RecallAtPrecision
    RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy
    SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy SpecificityAtSensitivity
    SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives TruePositives
    """
)
_LOSS_FUNCTIONS = _names(
    """
    binary_crossentropy binary_focal_crossentropy categorical_crossentropy
    categorical_focal_crossentropy categorical_generalized_cross_entropy categorical_hinge
    cosine_similarity dice hinge huber kl_divergence log_cosh mean_absolute_error
    mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error poisson
    sparse_categorical_crossentropy squared_hinge tversky bce BCE kld KLD mae MAE mape MAPE mse MSE
    msle MSLE
    """
)
_METRIC_FUNCTIONS = _LOSS_FUNCTIONS | _names(
    """
    accuracy acc crossentropy ce auc precision recall r2_score binary_accuracy categorical_accuracy
    sparse_categorical_accuracy sparse_top_k_categorical_accuracy top_k_categorical_accuracy
    """
)
_ACTIVATIONS = _names(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu
    linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus
    softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold
    """
)
_OPTIMIZERS = _names(
    """
    Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion Muon Nadam RMSprop SGD
    ScheduleFreeAdamW
    """
)
_SCHEDULES = _names(
    """
    CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay
    PolynomialDecay
    """
)
_INITIALIZERS = _names(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform TruncatedNormal
    VarianceScaling Zeros
    """
)
_VOCABULARIES = _names("IntegerLookup StringLookup TextVectorization")
_STANDARDIZED = _names("lower_and_strip_punctuation lower strip_punctuation")
_SPLIT = _names("whitespace character")

# keras.ops of functional models: arithmetic on tensors. None runs a function that is given to it (map, scan, cond),
# none reads a file, and none repeats anything as often as a number says: what they make of shapes is measured where a
# model is built, before there is memory for it.
_ARITHMETIC = _names(
    """
    Abs Absolute Add All Amax Amin Any Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin
    Argsort Average Cbrt Ceil Clip Concatenate Cos Cosh CountNonzero Cross Cumprod Cumsum Deg2rad Diagonal
    Diff Digitize Divide DivideNoNan Dot Einsum Equal Exp Exp2 ExpandDims Expm1 Fabs Flip Floor FloorDivide Fmax Fmin
    Fmod GetItem Greater GreaterEqual Heaviside Hypot Inner IsIn Isclose Isfinite Isinf Isnan Less LessEqual Log
    Log10 Log1p Log2 Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Matmul Max Maximum Mean Median Min
    Minimum Mod Moveaxis Multiply NanToNum Nanmax Nanmean Nanmin Nanstd Nansum Nanvar Negative NotEqual OnesLike
    Power Prod Ptp Quantile Rad2deg Ravel Reciprocal Reshape Roll Rot90 Round Select Sign Signbit Sin Sinc
    Sinh Sort Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Trace
    Transpose Tril Triu TrueDivide Trunc Var Vdot Where ZerosLike
    """
)
_NETWORKS = _names(
    """
    AveragePool Celu DepthToSpace DotProductAttention Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu
    LogSigmoid LogSoftmax MaxPool Moments Normalize OneHot Relu Relu6 Selu Sigmoid Silu SoftShrink Softmax Softplus
    Softsign SpaceToDepth SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink Threshold
    """
)

#: By the module under which Keras writes them.
_OPERATIONS: dict[str, frozenset[str]] = {
    "keras.src.ops.numpy": _ARITHMETIC,
    "keras.src.ops.nn": _NETWORKS,
    "keras.src.ops.math": _names("CDist Erf Erfc Erfinv InTopK Logsumexp Rsqrt TopK"),
    "keras.src.ops.core": _names("Cast SaturateCast Slice StopGradient Unstack"),
    "keras.src.ops.linalg": _names("Det Norm"),
    "keras.src.ops.image": _names("RGBToGrayscale RGBToHSV HSVToRGB"),
}

#: Every object that may occur, by the module under which Keras writes it.
_ALLOWED: dict[str, frozenset[str]] = {
    "keras": frozenset({"Sequential", "Functional", "Model", "DTypePolicy"}),
    "keras.models": frozenset({"Sequential", "Functional", "Model"}),
    "keras.src.models.functional": frozenset({"Functional"}),
    "keras.src.models.sequential": frozenset({"Sequential"}),
    "keras.layers": _LAYERS,
    "keras.losses": _LOSS_CLASSES,
    "keras.metrics": _METRIC_CLASSES,
    "keras.optimizers": _OPTIMIZERS,
    "keras.optimizers.schedules": _SCHEDULES,
    "keras.initializers": _INITIALIZERS,
    "keras.regularizers": frozenset({"L1", "L1L2", "L2", "OrthogonalRegularizer"}),
    "keras.constraints": frozenset({"MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}),
    "keras.dtype_policies": frozenset({"DTypePolicy", "FloatDTypePolicy"}),
    **_OPERATIONS,
}
_MODELS = frozenset({"Sequential", "Functional", "Model"})
_FUNCTIONS = _ACTIVATIONS | _METRIC_FUNCTIONS
_FUNCTION_MODULES = frozenset({"builtins", "keras.activations", "keras.losses", "keras.metrics"})
_PLAIN_VALUES = frozenset({"__keras_tensor__", "__numpy__", "__tensor__", "__slice__", "__ellipsis__"})
_NUMBER_TYPES = _names(
    """
    bool float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32
    """
)
_COMPILE_KEYS = _names(
    """
    optimizer loss loss_weights metrics weighted_metrics run_eagerly steps_per_execution jit_compile
    auto_scale_loss
    """
)
_OBJECT_KEYS = frozenset({"class_name", "module", "registered_name"})
_OPTIMIZER_NAMES = frozenset(name.lower() for name in _OPTIMIZERS)


def check_model_json(text: str, trusted: Trusted = NOTHING) -> dict[str, Any]:
    """Parse a model's JSON and check everything in it.

    Args:
        text: What `model.to_json()` gave.
        trusted: Registered names of parts that may occur besides.

    Returns:
        The checked config.

    Raises:
        ModelError: It is too long, no JSON, or holds something that is not allowed, which is named.
    """
    if len(text.encode("utf-8", "replace")) > MAX_JSON_BYTES:
        raise ModelError(
            f"The model's JSON is {len(text)} characters long; {MAX_JSON_BYTES} bytes are allowed."
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"The model is not JSON as Keras writes it. {exc}") from exc
    check_config(config, trusted)
    return dict(config)


def check_config(config: object, trusted: Trusted = NOTHING) -> None:
    """Check a whole Keras 3 model config, as from `json.loads(model.to_json())`.

    Args:
        config: The whole.
        trusted: Registered names of parts that may occur besides.

    Raises:
        ModelError: Names the first thing that is not allowed, or that is absurdly large.
    """
    _check_root(config)
    layers = 0
    for item in _walk(config):
        if isinstance(item, dict):
            _check_dict(item, trusted)
            layers += item.get("module") == "keras.layers"
        elif isinstance(item, int):
            check_integer(item)
    if layers > MAX_LAYERS:
        raise refused(f"{layers} layers", f"at most {MAX_LAYERS}")
    check_calls(dict(config))  # type: ignore[call-overload]


def _check_root(config: object) -> None:
    if not isinstance(config, dict) or config.get("class_name") not in _MODELS:
        received = config.get("class_name") if isinstance(config, dict) else type(config).__name__
        raise refused(
            f"{received!r} as the model", "a Sequential or Functional model (no subclass of keras.Model)"
        )


def _walk(root: object) -> Iterator[object]:
    """Every value in the JSON, parents first; without recursion, and no deeper than allowed."""
    pending: list[tuple[object, int]] = [(root, 1)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise refused(f"JSON nested more than {MAX_DEPTH} levels deep", "fewer models inside models")
        yield item
        pending.extend((child, depth + 1) for child in reversed(_children(item)))


def _children(item: object) -> list[object]:
    if isinstance(item, dict):
        # A shared object's id is an address in its maker's memory: only compared, and of any size.
        return [value for key, value in item.items() if key != "shared_object_id" or type(value) is not int]
    return item if isinstance(item, list) else []


def _check_dict(item: dict[str, Any], trusted: Trusted) -> None:
    if not _OBJECT_KEYS.isdisjoint(item):
        _check_object(item, trusted)
    check_shapes(item)
    _check_activations(item, trusted)
    if item.get("compile_config") is not None:
        _check_compile(item["compile_config"], trusted)


def _check_object(item: dict[str, Any], trusted: Trusted) -> None:
    """Whatever Keras would look up by name must be exactly one of the built-ins."""
    name, module = item.get("class_name"), item.get("module")
    if not isinstance(name, str) or "config" not in item:
        raise refused(f"an object without class_name and config: {str(item)[:80]!r}", "Keras 3's own format")
    if name in _PLAIN_VALUES:
        _check_plain_value(name, item)
    elif name == "function":
        _check_function(item, trusted)
    elif item.get("registered_name") in trusted:
        _check_trusted(name, item)
    elif not isinstance(module, str) or name not in _ALLOWED.get(module, ()):
        raise refused(f"{name} (module {module!r})", _expected_of(item))
    elif item.get("registered_name") not in (None, name):
        raise refused(f"the custom object {item['registered_name']!r}", "built-in Keras objects")
    elif not isinstance(item["config"], dict):
        raise refused(f"a config of {name} that is no map", "Keras 3's own format")
    else:
        check_numbers(name, item["config"])
        if name in _VOCABULARIES:
            _check_vocabulary(name, item["config"])


def _expected_of(item: dict[str, Any]) -> str:
    registered = str(item.get("registered_name") or "")
    also = " and what a module registers that is trusted with --trust-module" if ">" in registered else ""
    return f"built-in Keras layers, losses, metrics and optimizers{also}"


def parts_in(config: object, trusted: Trusted) -> tuple[str, ...]:
    """Which trusted parts a checked config holds, by their registered names: whoever builds it must trust these."""
    found: set[str] = set()
    for item in _walk(config):
        if isinstance(item, dict):
            found |= {
                str(each)
                for each in (item.get("registered_name"), item.get("config"))
                if isinstance(each, str)
            }
        elif isinstance(item, str):
            found.add(item)
    return tuple(sorted(found & trusted))


def _check_trusted(name: str, item: dict[str, Any]) -> None:
    """One of the parts that this machine's operator trusts; what is inside of it is checked like anything else."""
    if not isinstance(item["config"], dict):
        raise refused(f"a config of {name} that is no map", "Keras 3's own format")
    check_numbers(name, item["config"])


def _check_vocabulary(name: str, config: dict[str, Any]) -> None:
    """The words stand in the model itself: a path would be read from the disk of whoever builds it."""
    for key in ("vocabulary", "idf_weights"):
        given = config.get(key)
        if given is not None and not (isinstance(given, list) and all(map(_is_word, given))):
            raise refused(f"{key} = {given!r:.60} in {name}", "a list of words, or none")
    for key, allowed in (("standardize", _STANDARDIZED), ("split", _SPLIT), ("encoding", {"utf-8"})):
        if config.get(key) is not None and config[key] not in allowed:
            raise refused(f"{key} = {config[key]!r:.60} in {name}", f"one of {', '.join(sorted(allowed))}")


def _is_word(value: object) -> bool:
    return isinstance(value, str | int | float)


def _check_plain_value(name: str, item: dict[str, Any]) -> None:
    value = item["config"]
    if item.get("module") is not None or item.get("registered_name") is not None:
        raise refused(f"{name} with a module", "Keras 3's own format")
    if name == "__ellipsis__":
        return
    is_text = name == "__keras_tensor__" and isinstance(value, dict) and value.get("dtype") == "string"
    if not is_text and (not isinstance(value, dict) or not _is_number_type(value.get("dtype", "float32"))):
        raise refused(f"{name} of dtype {value!r:.80}", "numbers")
    if name in ("__numpy__", "__tensor__") and _holds_text(value.get("value")):
        raise refused(f"{name} that holds text", "numbers")


def _is_number_type(dtype: object) -> bool:
    return isinstance(dtype, str) and dtype in _NUMBER_TYPES


def _holds_text(value: object) -> bool:
    return any(isinstance(each, str | dict) for each in _walk(value))


def _check_function(item: dict[str, Any], trusted: Trusted) -> None:
    name, registered = item["config"], item.get("registered_name")
    if isinstance(name, str) and name in trusted:
        return
    is_known = isinstance(name, str) and name in _FUNCTIONS and item.get("module") in _FUNCTION_MODULES
    if not is_known or registered not in (None, name, "function"):
        raise refused(f"the function {name!r} (module {item.get('module')!r})", "Keras's own functions")


def _check_compile(settings: object, trusted: Trusted) -> None:
    """Loss, metrics and optimizer that are given by name; objects are checked like any other."""
    if not isinstance(settings, dict) or not _COMPILE_KEYS.issuperset(settings):
        unknown = sorted(set(settings) - _COMPILE_KEYS) if isinstance(settings, dict) else settings
        raise refused(f"the compile settings {unknown!r}", "those of keras.Model.compile")
    check_steps(settings)
    _check_named("loss", settings.get("loss"), _LOSS_FUNCTIONS | _LOSS_CLASSES | trusted)
    for key in ("metrics", "weighted_metrics"):
        _check_named("metric", settings.get(key), _METRIC_FUNCTIONS | _METRIC_CLASSES | trusted)
    optimizer = settings.get("optimizer")
    if isinstance(optimizer, str) and optimizer.lower() not in _OPTIMIZER_NAMES:
        raise refused(f"the optimizer {optimizer!r}", "Keras's own optimizers")


def _check_named(kind: str, value: object, allowed: frozenset[str]) -> None:
    """Check the strings of a loss or metrics setting: one, a list, a list of lists, or a map by output."""
    if isinstance(value, str) and value not in allowed:
        raise refused(f"the {kind} {value!r}", f"Keras's own {kind} names")
    if isinstance(value, dict) and _OBJECT_KEYS.isdisjoint(value):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check_named(kind, each, allowed)


def _check_activations(item: dict[str, Any], trusted: Trusted) -> None:
    for key, value in item.items():
        if key.endswith("activation") and isinstance(value, str) and value not in _ACTIVATIONS | trusted:
            raise refused(f"the activation {value!r}", "Keras's own activations")
