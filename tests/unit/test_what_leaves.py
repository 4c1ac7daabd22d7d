"""deploy/what-leaves.md lists every field of every message that a worker can send, and who keeps what back."""

import ast
import threading
from pathlib import Path
from typing import Any

import pytest

from broker.errors import DataError, ModelError
from broker.link.access import Access
from broker.link.rabbitmq.settings import LinkSettings
from broker.wire.messages import RollCall, UpdateAnnounced
from broker.wire.tensors import InputFacts
from tests.leaving import ENVELOPE, ROOT, allowed, fields_of, listed, rows, sent_by_workers
from tests.unit.test_site_rules import data
from worker.processes import child
from worker.processes.child import Ask, Child, Failed, Round, Shared
from worker.processes.pool import raised_by
from worker.rounds.site_rules import SHARES, SiteRules


def test_every_field_that_a_worker_can_send_is_listed() -> None:
    """A new field, or a new message, is a line on the page, with who sees it: or this fails and names it."""
    can_send = {name for kind in sent_by_workers() for name in fields_of(kind, kind.TYPE)}
    assert can_send - listed().keys() == set(), "fields that a worker sends, without a line"
    assert listed().keys() - can_send == set(), "lines of fields that no worker sends"


def test_what_a_worker_sends_is_found_where_it_is_made() -> None:
    """The rule above looks at something, and not at what coordinators send."""
    assert UpdateAnnounced in sent_by_workers()
    assert RollCall not in sent_by_workers()
    assert len(sent_by_workers()) >= 11


def test_every_field_has_a_level_that_there_is() -> None:
    """And each level tells all of the one before."""
    assert set(listed().values()) == set(SHARES)
    sizes = [len(allowed(share)) for share in SHARES]
    assert sizes == sorted(set(sizes))


def test_what_stands_around_every_message_is_listed() -> None:
    """The broker's administrator sees properties of messages and of connections."""
    around = {field for fields, _ in rows("Around every message") for field in fields}
    publishing = (ROOT / "broker/link/rabbitmq/publishing.py").read_text(encoding="utf-8")
    (properties,) = (
        node
        for node in ast.walk(ast.parse(publishing))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pika.BasicProperties"
    )
    told = LinkSettings(access=Access(amqp_url="amqp://w:p@localhost"), name="worker w").parameters(
        "publish"
    )["amqp://w:p@localhost"]
    assert {word.arg for word in properties.keywords} | {*told.client_properties} | {*ENVELOPE} <= around


@pytest.mark.parametrize("share", ["weights", "metrics"])
def test_the_range_of_the_inputs_is_rounded_where_no_more_than_must_is_shared(share: str) -> None:
    """A scale must be known, or one site spoils the model; the largest value of all examples is one patient's."""
    site: object = type("Site", (), {"inputs": InputFacts(shape=(3,), dtype="float32", low=-3.1, high=97.3)})
    told = SiteRules(share=share).inputs(site)  # type: ignore[arg-type]
    assert told is not None
    assert (told.low, told.high) == ((-3.5, 112.0) if share == "weights" else (-3.1, 97.3))
    assert (told.shape, told.dtype) == ((3,), "float32")


def test_the_range_of_images_is_everybodys() -> None:
    """0 to 255, whatever they show."""
    images = InputFacts(shape=None, dtype="uint8", low=0.0, high=255.0)
    site: object = type("Site", (), {"inputs": images})
    assert SiteRules(share="weights").inputs(site) is images  # type: ignore[arg-type]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("could not convert 'Jane Doe'"), "ValueError; what it says stays"),
        (caused(DataError("fit failed. KeyError: 'Jane Doe'"), KeyError("Jane Doe")), "KeyError; what it"),
        (DataError("fewer than 10 examples"), "fewer than 10 examples"),
        (caused(ModelError("can't build it"), TypeError("no layer")), "can't build it"),
    ],
)
def test_another_librarys_words_stay_where_no_more_than_must_is_shared(error: Exception, reason: str) -> None:
    """They may quote an example; what Warren says of the model and of its own rules does not."""
    assert SiteRules(share="weights").reason(error).startswith(reason)
    assert "Doe" not in SiteRules(share="weights").reason(error)
    assert reason.split(";")[0].split(" ")[0] in SiteRules().reason(error)


def test_each_level_of_counts_is_told_of_the_same_data() -> None:
    """From `counts` on, and not before."""
    told = [SiteRules(share=share).examples_per_class(data()) for share in SHARES]
    assert told == [(), (), (4, 6), (4, 6)]


class Raises:
    """A trainer that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def answer(self, *_: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("could not convert 'Jane Doe'"), "ValueError;"),
        (caused(DataError("fit failed. KeyError: 'Jane Doe'"), KeyError("Jane Doe")), "KeyError;"),
        (DataError("fewer than 10 examples"), "fewer than 10 examples"),
    ],
)
def test_a_process_of_its_own_withholds_the_same(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --threads the training is in another process; its errors come back as words, and as whose they are."""
    monkeypatch.setattr(child, "map_array", lambda _path: None)
    make: Any = lambda: Raises(error)  # noqa: E731 - a trainer's maker
    unused: Any = None
    shared = Shared({"w": unused}, make)
    worker = Child(shared, unused, unused, Path())
    failed = worker._answer(Ask(1, "w"), Round(unused, unused), threading.Event())
    assert isinstance(failed, Failed)
    raised = raised_by(failed)
    assert SiteRules(share="weights").reason(raised).startswith(told)
    assert "Doe" not in SiteRules(share="weights").reason(raised)
    assert str(error).split(" ")[0] in str(raised)
