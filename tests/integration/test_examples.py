"""Tests that the notebooks in examples/ run unchanged from the first to the last cell."""

from pathlib import Path

import nbformat
import pytest
import ray
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.ipynb")))
def test_a_notebook_runs(ray_cluster, name, tmp_path, monkeypatch):
    # Readers run it with a new local Ray, which takes seconds to start.
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # stored without outputs
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    assert all(cell["execution_count"] for cell in notebook.cells if cell.cell_type == "code")
