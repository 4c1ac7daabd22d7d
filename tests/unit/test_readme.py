"""The READMEs tell the truth: every command, option, target and file in them exists."""

import re
from pathlib import Path

import click
import pytest

import broker.cli
import coordinator.cli
import worker.cli

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
README = READMES[0].read_text(encoding="utf-8")
TEXTS = {path: path.read_text(encoding="utf-8") for path in READMES}
EVERYTHING = "\n".join(TEXTS.values())
GROUPS: dict[str, click.Group] = {
    "broker": broker.cli.main, "coordinator": coordinator.cli.main, "worker": worker.cli.main,
}  # fmt: skip
SHOWN = re.findall(
    r"(?:^|[`$] ?)((?:broker|coordinator|worker) [a-z][a-z-]+[^`#\n]*)", EVERYTHING, re.MULTILINE
)


@pytest.mark.parametrize("line", sorted(set(SHOWN)))
def test_every_command_in_the_readme_exists_with_its_options(line: str) -> None:
    """A command that is shown can be typed."""
    words = line.split()
    command = GROUPS[words[0]].commands.get(words[1])
    assert command is not None, line
    known = {name for option in command.params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= known | {"--help"}, line


def test_the_first_command_comes_early() -> None:
    """A reader sees what to type before line 20."""
    assert "$ make demo" in "\n".join(README.splitlines()[:20])


def test_every_make_target_in_the_readme_exists() -> None:
    """`make X` is a target of the Makefile."""
    targets = set(
        re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(re.findall(r"make ([a-z][a-z0-9-]+)", EVERYTHING)) - {"and"} <= targets


def test_every_exit_code_is_explained() -> None:
    """The table of exit codes has them all."""
    for code in ("| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 4 |", "| 5 |", "| 128 + n |"):
        assert code in README


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(path: Path) -> None:
    """Relative links are checked, from where they stand."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXTS[path]):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("room", ["broker", "coordinator", "worker", "deploy", "tests"])
def test_every_room_has_a_readme_that_the_first_one_leads_to(room: str) -> None:
    """Whoever carries on finds the reasons and the rules in the repository."""
    assert f"({room}/README.md" in README


def test_the_first_readme_is_read_in_one_go() -> None:
    """What it is, the first run, the commands, operating: the rest stands in the rooms."""
    assert len(README.splitlines()) <= 160


def test_every_test_that_security_names_exists() -> None:
    """Each *cannot* is tried by the test that stands beside it."""
    text = (ROOT / "deploy" / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
