"""What a site has against what a model needs: decided by names, shapes and kinds, before a round opens."""

import pytest

from broker.model.fit import holds_of_classes, misfit
from broker.wire.messages import Joined, decode, encode
from broker.wire.settings import Held, InputSpec, Needs, TargetSpec

AGE = InputSpec(name="age", shape=(3,), dtype="float32")
WORDS = InputSpec(name="words", shape=(), dtype="string")
PRICE = TargetSpec(name="price", shape=(1,), kind="numbers")
KIND = TargetSpec(name="kind", shape=(4,), kind="rows", num_classes=4)
PLACES = TargetSpec(name="places", shape=(None, None), kind="classes", num_classes=4)


def given(name: str, *shape: int | None, dtype: str = "float32") -> Held:
    return Held(name=name, role="input", shape=shape, dtype=dtype)


def learned(name: str, *shape: int | None, dtype: str = "float32") -> Held:
    return Held(name=name, role="target", shape=shape, dtype=dtype)


@pytest.mark.parametrize(
    ("inputs", "targets", "holds"),
    [
        ((AGE,), (PRICE,), (given("anything", 3), learned("0"))),
        ((AGE,), (PRICE,), (given("0", 3), learned("0", 1))),
        ((AGE, WORDS), (PRICE,), (given("words", 1, dtype="string"), given("age", 3), learned("0"))),
        ((AGE, WORDS), (PRICE,), (given("0", 3), given("1", dtype="string"), learned("0"))),
        (
            (AGE,),
            (PRICE, KIND),
            (given("0", 3), learned("kind", dtype="int64"), learned("price"), learned("more")),
        ),
        ((AGE,), (KIND,), (given("0", 3), learned("0", 4))),
        ((AGE,), (PLACES,), (given("0", 3), learned("0", 8, 9, 1, dtype="uint8"))),
    ],
)
def test_arrays_go_where_they_fit(
    inputs: tuple[InputSpec, ...], targets: tuple[TargetSpec, ...], holds: tuple[Held, ...]
) -> None:
    """One goes to the only one, several by name, nameless ones in their order; a last axis of 1 is no difference."""
    assert misfit(Needs(inputs=inputs, targets=targets), holds) is None


@pytest.mark.parametrize(
    ("inputs", "targets", "holds", "named"),
    [
        (
            (AGE,),
            (PRICE,),
            (given("0", 4), learned("0")),
            "(float32, 4 an example) does not fit",
        ),
        (
            (AGE,),
            (PRICE,),
            (given("0", 3, dtype="string"), learned("0")),
            "(string, 3 an example) does not fit",
        ),
        ((WORDS,), (PRICE,), (given("0"), learned("0")), "'words' (texts, one an example)"),
        (
            (AGE, WORDS),
            (PRICE,),
            (given("age", 3), learned("0")),
            "'age' (float32, 3 an example), 'words'",
        ),
        ((AGE, WORDS), (PRICE,), (given("old", 3), given("words"), learned("0")), "it has the inputs 'old'"),
        ((AGE,), (PRICE,), (given("0", 3), learned("0", 2)), "numbers, 1 an example"),
        ((AGE,), (KIND,), (given("0", 3), learned("0", 3)), "rows of 4 numbers, or class numbers"),
        (
            (AGE,),
            (PLACES,),
            (given("0", 3), learned("0", 8)),
            "class numbers from 0 to 3, any × any an example",
        ),
        ((AGE,), (PRICE,), (given("0", 3), learned("0", dtype="string")), "its target (string"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_needed(
    inputs: tuple[InputSpec, ...], targets: tuple[TargetSpec, ...], holds: tuple[Held, ...], named: str
) -> None:
    """A site's operator reads what there is, and what the model wants in its place."""
    assert named in (misfit(Needs(inputs=inputs, targets=targets), holds) or "")


def test_a_site_of_classes_has_one_array_and_whole_numbers() -> None:
    """It need not say so beside its class names; of images in files nothing is known."""
    assert holds_of_classes((3,), "uint8") == (given("0", 3, dtype="uint8"), learned("0", dtype="int64"))
    assert holds_of_classes(None, "uint8") == ()


def test_what_a_site_has_travels_with_its_word_and_costs_nothing_where_it_says_nothing() -> None:
    """An older coordinator takes the word of a site of classes, for the field is not there."""
    joined = Joined(
        worker="w", classes=(), num_examples=3, examples_per_class=(), holds=(given("age", None, 3),)
    )
    assert decode(encode(joined)) == joined
    plain = Joined(worker="w", classes=("a", "b"), num_examples=3, examples_per_class=())
    assert b"holds" not in encode(plain)
