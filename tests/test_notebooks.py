"""The notebooks hold what a reader is meant to find, use what the package offers, and (slow) run
from top to bottom in the interpreter that runs the tests.
"""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMEOUT = 600  # seconds for one cell, on a machine that is busy with other things
LARGEST = 600_000  # bytes of a committed notebook
OURS = ("astrogen", "benchmarks", "data_pipelines")

all_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Name of a kernel that is the running interpreter, whatever kernels the machine has, with one
    thread per library.
    """
    folder = tmp_path / "kernels" / "this-python"
    folder.mkdir(parents=True)
    specification = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "this Python",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    return "this-python"


@pytest.mark.slow
@all_notebooks
def test_runs_from_top_to_bottom(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name=kernel,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3
    numbers = " ".join(output["text"] for output in shown if output.get("name") == "stdout")
    assert not re.search(r"\b(nan|inf)\b", numbers), numbers


def test_there_are_five():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@all_notebooks
def test_outputs_are_committed_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 15 <= len(notebook.cells) <= 27 and path.stat().st_size < LARGEST
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "run all cells in order, then save"
    )
    outputs = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for output in outputs
    )
    assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text())


@all_notebooks
def test_the_code_parses_and_its_imports_exist(path):
    """Every cell is plain Python; every name that is imported from the package is there."""
    notebook = nbformat.read(path, as_version=4)
    trees = [ast.parse(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    imports = [node for tree in trees for node in ast.walk(tree)]
    ours = [
        (node.module, name.name)
        for node in imports
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS
        for name in node.names
    ]
    for module, name in ours:
        found = importlib.import_module(module)
        if not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    for node in imports:
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in OURS:
                    importlib.import_module(name.name)
    assert any(module.split(".")[0] == "astrogen" for module, _ in ours) or any(
        isinstance(node, ast.Import) and any(n.name.startswith("astrogen") for n in node.names)
        for node in imports
    )
