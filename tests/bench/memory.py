"""The most memory that a process had resident."""

from pathlib import Path


def peak_megabytes(pid: int | str = "self") -> float | None:
    """A running process's peak; None where the system doesn't tell, or the process has ended.

    Not getrusage's ru_maxrss: that one begins with what the parent had resident when it started the process.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return round(found[0] / 1024, 1) if found else None
