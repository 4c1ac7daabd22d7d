"""Fixtures of the fault tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stage import Stage

MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[MakeStage]:
    """Makes a stage at an AMQP URL; everything on it is ended with the test."""
    stages: list[Stage] = []

    def make(amqp_url: str, **more: Any) -> Stage:
        stages.append(Stage(amqp_url, tmp_path, **more))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(vhost: str, make_stage: MakeStage) -> Stage:
    """A stage on a virtual host of its own."""
    return make_stage(vhost)
