"""The notebook runs from its first cell to its last, in a copy, and shows what it promises."""

import pathlib
import shutil

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 300  # for the longest cell


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
  """The notebook after a run in a fresh kernel that sees this source tree and nothing of ours."""
  folder = tmp_path_factory.mktemp("notebook")
  path = shutil.copy(ROOT / "notebooks" / "quickstart.ipynb", folder)
  notebook = nbformat.read(path, as_version=4)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    client = nbclient.NotebookClient(
      notebook,
      timeout=SECONDS,
      kernel_name="python3",
      resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def outputs(notebook):
  """(output, cell number) of everything that the cells left."""
  cells = [c for c in notebook.cells if c.cell_type == "code"]
  return [(out, number) for number, cell in enumerate(cells) for out in cell.outputs]


def test_every_cell_ran_in_order(executed):
  cells = [c for c in executed.cells if c.cell_type == "code"]
  assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))


def test_it_prints_what_it_measures(executed):
  text = "".join(out.get("text", "") for out, _ in outputs(executed) if out.output_type == "stream")
  for words in ("training images of each class", "tau", "plain:", "ADSA:"):
    assert words in text


def test_it_ends_with_a_plot(executed):
  cells = [c for c in executed.cells if c.cell_type == "code"]
  pictures = [number for out, number in outputs(executed) if "image/png" in out.get("data", {})]
  assert pictures[-1] == len(cells) - 1


def test_the_stored_notebook_has_no_outputs():
  notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs
      assert cell.execution_count is None
