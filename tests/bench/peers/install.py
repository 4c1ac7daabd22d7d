"""Makes the peers' virtual environments in build/peers: the newest releases on PyPI, pinned here and nowhere else.

python -m tests.bench.peers.install
"""

import subprocess
import sys
from pathlib import Path

ENVIRONMENTS = Path("build/peers")
#: tensorflow-cpu has the kernels of tensorflow, and is imported faster: Flower does that for every message.
PINS: dict[str, tuple[str, ...]] = {
    "flower": ("flwr[simulation]==1.42.0", "tensorflow-cpu==2.21.0", "psutil==7.2.2"),
    "nvflare": ("nvflare==2.9.0", "tensorflow-cpu==2.21.0", "psutil==7.2.2"),
    # It takes weights by their names, which Keras 3 gives to several: tf_keras is Keras 2.
    "pfl": (
        "pfl==0.6.0",
        "tensorflow-cpu==2.21.0",
        "tensorflow-probability==0.25.0",
        "tf_keras==2.21.0",
        "psutil==7.2.2",
    ),
}


def python_of(system: str) -> Path:
    """The Python of a peer's environment."""
    return (ENVIRONMENTS / system / "bin" / "python").absolute()


def install(system: str) -> None:
    """Make a peer's environment, unless it is there with the same pins."""
    record, pins = ENVIRONMENTS / system / "pins.txt", "\n".join(PINS[system])
    if record.is_file() and record.read_text() == pins:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENTS / system], check=True)
    pip = [str(python_of(system)), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *PINS[system]], check=True)
    record.write_text(pins)


def main() -> None:
    """Install all peers."""
    for system in PINS:
        install(system)


if __name__ == "__main__":
    main()
