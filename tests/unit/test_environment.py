"""The names of the environment that are written anywhere are names that something reads."""

import re
from pathlib import Path

import click
import pytest

import broker.cli
import coordinator.cli
import worker.cli

ROOT = Path(__file__).parents[2]
ROOMS = ("broker", "coordinator", "worker", "deploy", "tests")
GROUPS: tuple[click.Group, ...] = (broker.cli.main, coordinator.cli.main, worker.cli.main)
COMMANDS = [command for group in GROUPS for command in group.commands.values()]
NAME = re.compile(r"\bWARREN_[A-Z0-9_]*[A-Z0-9]\b(?!\.)")
#: What is read elsewhere than by an option: by a program of ours, or where compose fills in its file.
READ = re.compile(r'(?:environ(?:\.get)?[\[(]|= )"(WARREN_\w+)"|\$\{(WARREN_\w+)')


def files(*endings: str) -> list[Path]:
    found = [path for room in ROOMS for ending in endings for path in (ROOT / room).rglob(f"*{ending}")]
    return sorted([*found, *(path for ending in endings for path in ROOT.glob(f"*{ending}"))])


def known() -> set[str]:
    """All names that something reads."""
    options = {
        name
        for command in COMMANDS
        for option in command.params
        if isinstance(option, click.Option)
        for name in (option.envvar or ())
    }
    texts = (path.read_text(encoding="utf-8") for path in files(".py", ".yaml"))
    return options | {name for text in texts for pair in READ.findall(text) for name in pair if name}


def helps() -> dict[str, str]:
    return {
        f"{command.name} --help": command.get_help(click.Context(command)) for command in COMMANDS
    }  # fmt: skip


WRITTEN = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files(".md", ".yaml")
} | helps()


@pytest.mark.parametrize("place", [place for place, text in WRITTEN.items() if NAME.search(text)])
def test_a_name_that_is_written_is_read(place: str) -> None:
    """WARREN_SERVE_TOKEN was written, and nothing read it."""
    assert set(NAME.findall(WRITTEN[place])) <= known()


def test_the_names_of_the_page_are_written() -> None:
    """Its tokens are given so: on a command line `ps` shows them."""
    assert {"WARREN_COORDINATOR_TOKEN", "WARREN_COORDINATOR_READ_TOKEN"} <= known()
    assert "WARREN_COORDINATOR_TOKEN" in WRITTEN["README.md"]
    assert "WARREN_COORDINATOR_READ_TOKEN" in WRITTEN["deploy/README.md"]
