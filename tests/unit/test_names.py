"""Names: what a worker may be called, and whom an account may speak for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import UsageError
from broker.wire import names


@pytest.mark.parametrize("name", ["a", "hospital-1", "0", "-", "x" * 48])
def test_a_good_name_is_returned(name: str) -> None:
    """1 to 48 of a-z, 0-9 and the hyphen."""
    assert names.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 49, "Hospital", "a.b", "a b", "a\n", "é", "#", "*", "a/b", names.COORDINATOR]
)
def test_a_bad_name_is_refused(name: str) -> None:
    """A name becomes part of routing keys and permission patterns; `coordinator` is reserved."""
    with pytest.raises(UsageError, match="1 to 48"):
        names.check_name(name)


@given(st.text(max_size=80))
def test_a_refusal_suggests_a_name_that_would_do(name: str) -> None:
    """Whatever was typed, what the message says to try is accepted."""
    try:
        names.check_name(name)
    except UsageError as exc:
        suggested = re.search(r"Try --name (\S+)$", str(exc))
        assert suggested is not None
        assert names.check_name(suggested[1]) == suggested[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hospital-1", True),
        ("swarm.1", True),
        ("swarm.999999", True),
        ("swarm.0", False),
        ("swarm.01", False),
        ("swarm.1.2", False),
        ("swarm.", False),
        (".1", False),
        ("swarm.1\n", False),
        (names.COORDINATOR, False),
    ],
)
def test_a_swarm_counts_its_workers_from_one(name: str, expected: bool) -> None:
    """NAME.i with i from 1 is a worker, too; nothing deeper is."""
    assert names.is_worker(name) is expected


@pytest.mark.parametrize(
    ("account", "worker", "expected"),
    [
        ("site-1", "site-1", True),
        ("site-1", "site-1.7", False),
        ("site-1", "site-10", False),
        ("site-1", "site-2", False),
        ("site-1.7", "site-1", False),
        ("", "site-1", False),
        ("lab.1-20", "lab.1", True),
        ("lab.1-20", "lab.20", True),
        ("lab.1-20", "lab.21", False),
        ("lab.1-20", "lab.0", False),
        ("lab.1-20", "lab.01", False),
        ("lab.1-20", "lab.1.2", False),
        ("lab.1-20", "lab", False),
        ("lab.1-20", "lab-1.1", False),
        ("lab.2-20", "lab.2", False),
    ],
)
def test_an_account_speaks_for_its_name_or_for_the_swarm_in_it(
    account: str, worker: str, expected: bool
) -> None:
    """One account is one worker; a number of names has only who was invited as that many. Another worker whose name
    only begins alike is somebody else."""
    assert names.is_of(account, worker) is expected


@given(count=st.integers(1, 300))
def test_a_swarm_s_account_names_its_workers(count: int) -> None:
    """The account's name is all that a reader learns of it: who is invited, and who those are."""
    account = names.swarm_account("lab", count)
    workers = names.numbered("lab", range(1, count + 1))
    assert all(names.is_worker(worker) and names.is_of(account, worker) for worker in workers)
    assert not names.is_of(account, f"lab.{count + 1}")
    assert names.invited_name(account) == "lab"
    assert not names.is_worker(account)


def test_a_swarm_s_account_reads_for_its_processes_alone() -> None:
    """It is used by one process, or by some that share its workers; one worker's account is used by none of these."""
    assert names.readers_of("lab.1-20") == ["lab"]
    assert names.readers_of("lab.1-20", parts=2) == ["lab.1", "lab.2"]
    assert names.readers_of("lab") == ["lab"]
    allowed = {
        reader for reader in ("lab", "lab.1", "lab.21", "lab-1") if names.reads_for("lab.1-20", reader)
    }
    assert allowed == {"lab", "lab.1"}
    assert not any(names.reads_for("lab", reader) for reader in ("lab", "lab.1"))
    assert names.is_own_queue("lab.1-20", "worker.lab")
    assert not names.is_own_queue("lab", "worker.lab.1")


@given(numbers=st.sets(st.integers(1, 20_000), max_size=50))
def test_numbers_come_as_they_were_sent(numbers: set[int]) -> None:
    """A bit for each up to the highest."""
    packed = names.pack_numbers(numbers)
    assert names.unpack_numbers(packed) == sorted(numbers)
    assert len(packed) == -(-max(numbers, default=0) // 8)


def test_queues_say_what_they_hold() -> None:
    """The person at the management page reads these."""
    assert names.worker_queue("site-1") == "worker.site-1"
    assert names.upload_queue("swarm.3") == "upload.swarm.3"
