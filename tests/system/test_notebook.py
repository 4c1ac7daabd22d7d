"""The notebook that a newcomer begins with: executed from its first cell to its last."""

import time
from pathlib import Path

import pytest

from tests.brokers import at_load

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "deploy" / "notebooks" / "first_federation.ipynb"

pytestmark = pytest.mark.filterwarnings("ignore:::(zmq|jupyter_client|nbclient|asyncio|traitlets)")


def test_the_first_notebook_runs_in_under_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is true: no cell fails, no file is left, and both kinds of workers learn."""
    import nbformat  # late: it takes 3 s
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is stored without outputs"
    notebook.cells.append(
        nbformat.v4.new_code_cell("print([run.history[-1]['val_accuracy'] for run in runs.values()])")
    )
    started = time.monotonic()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - started < at_load(60)
    (output,) = notebook.cells[-1].outputs
    alike, different, with_momentum = map(float, output.text.strip("[]\n").split(","))
    assert alike > 0.9
    assert with_momentum > different
    assert list(tmp_path.iterdir()) == []
