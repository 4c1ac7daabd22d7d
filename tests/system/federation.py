"""A whole run in one process over the link in memory: the coordinator's rounds, and workers that train."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broker import logs
from broker.hosting.private import wait_until
from broker.link.memory import MemoryBroker, MemoryLink
from broker.model.allowlist import check_model_json, parts_in
from broker.model.card import ModelCard
from broker.model.kinds import layout_of
from broker.model.needs import needs_of
from broker.model.trust import NOTHING, Trusted
from broker.wire.tensors import Array, InputFacts, flatten, unflatten
from coordinator.folder.checkpoint import Checkpoint
from coordinator.keras.form import check_form, check_training
from coordinator.keras.process import BuiltModel
from coordinator.keras.trial import work_out
from coordinator.keras.vocabulary import carry_vocabularies
from coordinator.options import RunOptions
from coordinator.play.run import Run
from coordinator.tasks import Task, TaskDefaults
from worker.data.data_set import Dataset
from worker.learning.console import Console
from worker.rounds.participant import KerasTrainer, Participant
from worker.rounds.worker_loop import WorkerLoop
from worker.tables.table_set import TableSet
from worker.tensorflow import load_keras

TASK = Task(name="table", kind="builder", source="tests:model", defaults=TaskDefaults())


class Models:
    """In the place of ModelProcess: the same checks of a model in this very process, which has Keras."""

    def __init__(self, model: Any, trusted: Trusted = NOTHING) -> None:
        import json

        check_form(model)
        config = json.loads(model.to_json())
        carry_vocabularies(model, config)
        self.text = json.dumps(config)
        self._trusted = trusted
        self.warnings = check_training(self._rebuilt())
        needs = needs_of(model)
        vector, integers = flatten([weight.numpy() for weight in model.weights], layout_of(model))
        self.built = BuiltModel(
            model_json=self.text,
            layout=layout_of(model),
            vector=vector,
            integers=integers,
            input_shape=tuple(model.input_shape[1:]) if needs.num_classes else (),
            num_classes=needs.num_classes,
            num_parameters=int(model.count_params()),
            needs=needs,
            parts=parts_in(config, trusted),
        )

    @property
    def weights(self) -> list[Array]:
        """Those that a run begins with, in Keras's order."""
        return unflatten(self.built.layout, self.built.vector, self.built.integers)

    def _rebuilt(self) -> Any:
        config = check_model_json(self.text, self._trusted)
        return load_keras().saving.deserialize_keras_object(config, safe_mode=True)

    def build(self, _task: Task, **_asked: Any) -> BuiltModel:
        return self.built

    def check(self, _candidate: Path, _inputs: InputFacts | None) -> None:
        return None

    def save(self, _checkpoint: Path, _model: Path, card: ModelCard, *, is_held: bool = False) -> None:
        del is_held
        assert ModelCard.from_json(card.to_json()) == card

    def draw_workers(self, _checkpoint: Path, _picture: Path) -> None:
        pass

    def flush(self, _seconds: float) -> bool:
        return True

    def work_out(self, _model_json: str, sums: Mapping[str, Array]) -> dict[str, float]:
        return work_out(self._rebuilt(), {name: list(state) for name, state in sums.items()})


class Outcome:
    """What a run gave: its last state, and the weights in Keras's order."""

    def __init__(self, state: Checkpoint) -> None:
        self.state = state
        self.weights = unflatten(state.layout, state.vector, state.integers)


def play(
    models: Models,
    sites: Mapping[str, Dataset | TableSet],
    folder: Path,
    *,
    trainer: KerasTrainer,
    seconds: float = 60,
    **options: Any,
) -> Outcome:
    """Play a run with these sites, each a worker with a link of its own; one trainer serves all."""
    broker, stop, log = MemoryBroker(), threading.Event(), logs.configure()
    failures: list[BaseException] = []

    def serve(name: str, data: Dataset | TableSet) -> None:
        link = MemoryLink(broker, name)
        participant = Participant(name=name, data=data, trusts=tuple(sorted(models._trusted)))
        try:
            WorkerLoop(
                link, [participant], _Locked(trainer), stop=stop, log=log, console=Console(), once=True
            ).serve()
        except BaseException as exc:  # noqa: BLE001 - raised by who waits
            failures.append(exc)

    threads = [threading.Thread(target=serve, args=each, daemon=True) for each in sites.items()]
    link = MemoryLink(broker, "coordinator")
    asked = RunOptions(
        task=TASK, out=folder, workers=len(sites), **{"rounds": 2, "deadline_seconds": seconds} | options
    )
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(link, asked, models, stop=stop, log=log)  # type: ignore[arg-type]
    run.each_turn(lambda: _raise_first(failures))
    for thread in threads:
        thread.start()
    try:
        run.play()
        return Outcome(run._committed.present)
    finally:
        wait_until(lambda: not any(thread.is_alive() for thread in threads), 10)
        stop.set()
        for thread in threads:
            thread.join(10)


def _raise_first(failures: list[BaseException]) -> None:
    if failures:
        raise failures[0]


class _Locked:
    """One trainer, and so one traced model, for several workers of this process."""

    lock = threading.Lock()

    def __init__(self, trainer: KerasTrainer) -> None:
        self._trainer = trainer

    def warm_up(self) -> None:
        self._trainer.warm_up()

    def answer(self, *given: Any) -> Any:
        with self.lock:
            return self._trainer.answer(*given)
