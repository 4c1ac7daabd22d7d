"""How one data set is dealt to several sites: evenly, or as unevenly as hospitals differ.

A group (a patient) is never divided: two pictures of one person at two sites would let the one site's
test measure what the other has learned by heart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from broker.errors import DataError, UsageError

Indices = npt.NDArray[np.int64]

_SHARDS_PER_SITE = 2  # McMahan et al. 2017, section 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How to partition.

    Attributes:
        name: iid, shards or dirichlet.
        alpha: Dirichlet's concentration: small is uneven; only for dirichlet.
    """

    name: str
    alpha: float = 1.0


def parse_scheme(text: str) -> Scheme:
    """Read `iid`, `shards` or `dirichlet:ALPHA`.

    Raises:
        UsageError: It is none of them, or ALPHA is not a number above 0.
    """
    name, _, alpha = text.partition(":")
    if text in ("iid", "shards"):
        return Scheme(name=name)
    if name == "dirichlet" and _is_positive(alpha):
        return Scheme(name=name, alpha=float(alpha))
    raise UsageError(
        f"A partition is iid, shards or dirichlet:ALPHA with ALPHA above 0. Received {text!r}. "
        "Try dirichlet:0.5"
    )


def parse_share(text: str, count: int) -> range:
    """Read `I/K`: which of `count` sites the I-th of K processes plays.

    Returns:
        The sites, from 0; the K ranges cover all sites, each once, and differ by one in length at most.

    Raises:
        UsageError: It isn't 1 ≤ I ≤ K ≤ count.
    """
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second) <= count):
        raise UsageError(
            f"--part is I/K, this process and how many there are, with 1 ≤ I ≤ K ≤ COUNT ({count}). "
            f"Received {text!r}. Try --part 1/{min(2, count)}"
        )
    process, processes = int(first), int(second)
    return range(count * (process - 1) // processes, count * process // processes)


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < 1e6
    except ValueError:
        return False


def partition(
    labels: Indices, groups: Sequence[str] | None, into: int, scheme: str = "iid", seed: int = 0
) -> list[Indices]:
    """Deal examples to sites, each exactly once.

    Args:
        labels: (n,) class index of each example.
        groups: n names; examples of one name stay together. None: each example is alone.
        into: The number of sites.
        scheme: `iid` keeps the classes' balance and gives each site as many examples; `shards` sorts by
            class, cuts into two shards a site, and deals these (McMahan et al. 2017, section 3);
            `dirichlet:ALPHA` draws each site's balance of classes from a Dirichlet distribution around the
            whole set's (Hsu et al. 2019, section 3).
        seed: The same seed gives the same sites.

    Returns:
        For each site the sorted indices of its examples.

    Raises:
        UsageError: `into` or `scheme` is impossible.
        DataError: A site would be empty, or with iid lack a class.
    """
    chosen = parse_scheme(scheme)
    if into < 1:
        raise UsageError(f"Data is cut into 1 site or more. Received {into}.")
    bundles = _bundles(labels, groups)
    _check_enough(bundles, into, chosen)
    deal = {"iid": _deal_evenly, "shards": _deal_shards, "dirichlet": _deal_dirichlet}[chosen.name]
    sites: list[list[Indices]] = [[] for _ in range(into)]
    for bundle, site in deal(bundles, into, chosen.alpha, np.random.default_rng(seed)):
        sites[site].append(bundles.members[bundle])
    return [np.sort(np.concatenate(site)) for site in sites]


def deal_examples(labels: Indices, into: int, seed: int) -> list[Indices]:
    """Deal examples one by one, classes in balance; with fewer examples than sites some get none.

    Args:
        labels: (n,) class index of each example.
        into: The number of sites.
        seed: The same seed gives the same sites.

    Returns:
        For each site the sorted indices of its examples.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return [np.sort(order[site::into]) for site in range(into)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bundles:
    """What is dealt: groups of examples.

    Attributes:
        members: For each bundle the indices of its examples.
        counts: (bundles, classes) examples of each class.
    """

    members: list[Indices]
    counts: Indices

    @property
    def sizes(self) -> Indices:
        """Examples in each bundle."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def labels(self) -> Indices:
        """The class that each bundle mostly holds."""
        return np.asarray(self.counts.argmax(axis=1))


def _bundles(labels: Indices, groups: Sequence[str] | None) -> _Bundles:
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _, owner = np.unique(names, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    counts = np.zeros((len(starts), int(labels.max(initial=0)) + 1), np.int64)
    np.add.at(counts, (owner, labels), 1)
    return _Bundles(members=np.split(order, starts[1:]), counts=counts)


def _check_enough(bundles: _Bundles, into: int, scheme: Scheme) -> None:
    """Each site needs its share: of every class for iid, two shards, or anything at all."""
    if scheme.name == "iid":
        possible = min((int(n) for n in (bundles.counts > 0).sum(axis=0) if n), default=0)
        what = "patients (or single examples) of its rarest class"
    else:
        shares = _SHARDS_PER_SITE if scheme.name == "shards" else 1
        possible = len(bundles.members) // shares
        what = f"patients (or single examples), {shares} a site needed"
    if into > possible:
        have = possible if scheme.name == "iid" else len(bundles.members)
        raise DataError(
            f"Can't cut this data into {into} sites: it has {have} {what}. "
            f"Try {possible} sites or fewer, or bring more data."
        )


def _deal_evenly(
    bundles: _Bundles, into: int, _alpha: float, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Large bundles first, each to the site that has the fewest of its classes (then: the fewest of all)."""
    dealt = np.zeros((into, bundles.counts.shape[1]), np.int64)
    total = np.zeros(into, np.int64)
    shuffled = rng.permutation(len(bundles.members))
    for bundle in shuffled[np.argsort(-bundles.sizes[shuffled], kind="stable")]:
        counts = bundles.counts[bundle]
        site = int(np.argmin((dealt @ counts) * (int(total.max()) + 1) + total))
        dealt[site] += counts
        total[site] += counts.sum()
        yield int(bundle), site


def _deal_shards(
    bundles: _Bundles, into: int, _alpha: float, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Sorted by class and cut into equal shards, as far as undivided bundles allow; two shards a site."""
    shuffled = rng.permutation(len(bundles.members))
    order = shuffled[np.argsort(bundles.labels[shuffled], kind="stable")]
    count = into * _SHARDS_PER_SITE
    owners = rng.permutation(count) // _SHARDS_PER_SITE
    for shard, members in enumerate(_cut(order, bundles.sizes[order], count)):
        yield from ((int(bundle), int(owners[shard])) for bundle in members)


def _cut(order: Indices, sizes: Indices, count: int) -> Iterator[Indices]:
    """Cut a row into `count` pieces of about equal size; none is empty."""
    ends = np.cumsum(sizes)
    start = 0
    for piece in range(1, count + 1):
        wanted = int(np.searchsorted(ends, ends[-1] * piece / count - sizes.mean() / 2)) + 1
        end = min(max(wanted, start + 1), len(order) - (count - piece))
        yield order[start : end if piece < count else len(order)]
        start = end


def _deal_dirichlet(
    bundles: _Bundles, into: int, alpha: float, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Each site draws bundles by its own balance of classes; the smallest site is always the next to draw."""
    left = [
        list(rng.permutation(np.flatnonzero(bundles.labels == c))) for c in range(bundles.counts.shape[1])
    ]
    overall = np.array([len(bundle) for bundle in left], np.float64)
    wishes = _draw_wishes(overall / overall.sum(), into, alpha, rng)
    total = np.zeros(into, np.int64)
    sizes = bundles.sizes
    for _ in bundles.members:
        site = int(np.argmin(total))
        bundle = int(left[_draw_class(wishes[site], left, rng)].pop())
        total[site] += sizes[bundle]
        yield bundle, site


def _draw_wishes(
    overall: npt.NDArray[np.float64], into: int, alpha: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """(into, classes) shares, drawn from Dirichlet(alpha × overall); a class that nobody has gets none."""
    wishes = np.zeros((into, len(overall)))
    present = overall > 0
    wishes[:, present] = rng.dirichlet(np.maximum(alpha * overall[present], 1e-3), size=into)
    return wishes


def _draw_class(wish: npt.NDArray[np.float64], left: list[list[int]], rng: np.random.Generator) -> int:
    """One class by the site's wish among those not used up; if its classes are, by what is left."""
    shares = np.where([bool(bundles) for bundles in left], wish, 0.0)
    if shares.sum() <= 0:
        shares = np.array([len(bundles) for bundles in left], np.float64)
    return int(np.searchsorted(np.cumsum(shares / shares.sum()), rng.random() * (1 - 1e-9), side="right"))
