"""What measures are called: in files, on the page, in the log, and what stands before a name."""

from collections.abc import Iterable

LOSS = "loss"
ACCURACY = "accuracy"
BALANCED_ACCURACY = "balanced_accuracy"
AUC = "auc"

TEST = "val_"  #: before what the workers that train measured of the global model
CENTRAL = "central_"  #: before what those measured that only evaluate

#: These always have a column.
COLUMNS = (
    LOSS, ACCURACY, f"{TEST}{LOSS}", f"{TEST}{ACCURACY}", f"{TEST}{BALANCED_ACCURACY}", f"{TEST}{AUC}"
)  # fmt: skip
#: Where the model is no classifier, these.
GENERAL_COLUMNS = (LOSS, f"{TEST}{LOSS}")
#: How good a run became, in a few words.
RESULTS = (ACCURACY, AUC, LOSS)
#: The same where there is a line for it, the most telling first.
ALL_RESULTS = (ACCURACY, BALANCED_ACCURACY, AUC, LOSS)

#: By which the best round is found where nobody says: the first that there is.
BEST_BY = (f"{TEST}{LOSS}", f"{CENTRAL}{LOSS}")

_BEST_KNOWN = (LOSS, ACCURACY, BALANCED_ACCURACY, AUC)
_TITLES = {AUC: "AUC"}


def bare_name(name: str) -> str:
    """The measure's name without what it was measured on."""
    return name.removeprefix(TEST).removeprefix(CENTRAL)


def best_known_first(names: Iterable[str]) -> list[str]:
    """Each name once: those that everybody knows, then the others as they came."""
    found = dict.fromkeys(names)
    return [
        *(name for name in _BEST_KNOWN if name in found),
        *(name for name in found if name not in _BEST_KNOWN),
    ]


def title_of(name: str) -> str:
    """A measure's name above a chart."""
    return _TITLES.get(name, name[:1].upper() + name[1:].replace("_", " "))
