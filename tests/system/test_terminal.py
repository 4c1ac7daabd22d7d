"""What a person sees at a real terminal, and what a file gets of the same."""

import os
import pty
import re
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from tests.servings import ROOT, TASK, Lab, save_site

RUN = ("coordinator", "run", TASK, "--workers", "1", "--rounds", "2", "--epochs", "30", "--out")


class Terminal:
    """One of our commands with a pseudo-terminal before it."""

    def __init__(self, folder: Path, amqp_url: str, package: str, *words: str) -> None:
        self._screen, inside = pty.openpty()
        termios.tcsetwinsize(inside, (24, 100))
        program = f"from {package}.cli import main; main(prog_name={package!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdin=inside, stdout=inside, stderr=inside, cwd=folder,
            env=os.environ | {"AMQP_URL": amqp_url, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        )  # fmt: skip
        os.close(inside)
        self._seen: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._screen)

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._screen, 4096)
            except OSError:  # Linux says so when the last process has left the terminal
                return
            if not piece:  # macOS says so
                return
            self._seen.append(piece)

    def ended(self) -> tuple[int, str]:
        """Its exit code, and everything that it wrote to the screen."""
        code = self._process.wait(120)
        self._reader.join()
        return code, b"".join(self._seen).decode()


@pytest.fixture
def site(tmp_path: Path) -> str:
    return str(save_site(tmp_path / "site.npz", 200, seed=1))


def left_standing(screen: str) -> list[str]:
    """The lines that a person still sees at the end, each as it was last written over."""
    return [line.rstrip("\r").rsplit("\r", 1)[-1] for line in screen.split("\n")]


def test_a_terminal_shows_bars_that_the_log_does_not_tear(tmp_path: Path, vhost: str, site: str) -> None:
    """Rounds and epochs have bars at the foot of the screen; what is left in the end is the log, line by line."""
    join = ("worker", "run", "--once", "--name", "ward", "--data", site)
    with Terminal(tmp_path, vhost, *join) as worker, Terminal(tmp_path, vhost, *RUN, "run") as coordinator:
        for terminal, bars, closing in (
            (coordinator, ("round 1/2 |", "round 2/2 |", "0 of 1 answered"), "Round 2 closed"),
            (worker, ("epoch 1/30:", "epoch 30/30:", "batches"), "Epoch 30 of 30"),
        ):
            code, screen = terminal.ended()
            assert code == 0, screen
            for shown in bars:
                assert shown in screen
            lines = [line for line in left_standing(screen) if line]
            assert all(re.match(r"\d\d:\d\d:\d\d |run/model.keras ", line) for line in lines), lines
            assert any(closing in line for line in lines)


def test_a_file_gets_plain_lines(tmp_path: Path, vhost: str, site: str) -> None:
    """Piped, the same commands write no bar, no colour and no carriage return."""
    with Lab(tmp_path, vhost) as lab:
        worker = lab.start("worker", "run", "--once", "--name", "ward", "--data", site)
        code, said = lab.run(*RUN[1:], "run")
        assert code == 0, said
        assert worker.ended() == 0
        for text in (said, worker.said):
            assert "\r" not in text
            assert "\x1b" not in text
