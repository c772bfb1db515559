"""The notebooks run from the first cell to the last, in copies, and show what they promise.

Their stored outputs are of such a run: `python -m tests.e2e.test_notebook NAME...` renews them.
"""

import pathlib
import re
import shutil
import sys
import tempfile

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
SECONDS = 300  # for the longest cell
MAX_BYTES = 300_000


def execute(name, folder):
  """The notebook after a run in a fresh kernel that sees this source tree and nothing of ours."""
  path = shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder)
  notebook = nbformat.read(path, as_version=4)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    patch.setenv("TMPDIR", str(folder))
    patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    client = nbclient.NotebookClient(
      notebook,
      timeout=SECONDS,
      kernel_name="python3",
      record_timing=False,
      resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Of all notebooks: they share compiled programs."""
  return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module", params=NAMES)
def executed(request, folder):
  """The name of a notebook, and the notebook after a run."""
  return request.param, execute(request.param, folder)


def code_cells(notebook):
  return [c for c in notebook.cells if c.cell_type == "code"]


def outputs(notebook):
  """What the cells left."""
  return [out for cell in code_cells(notebook) for out in cell.outputs]


def text_of(notebook):
  """What the cells printed."""
  streams = [out for out in outputs(notebook) if out.output_type == "stream"]
  return "".join(out.text for out in streams if out.name == "stdout")


def numbers(pattern, text):
  """The numbers of the first match."""
  return [float(x) for x in re.search(pattern, text).groups()]


def adsa_helps_the_tail(text):
  before, after = numbers(r"tail accuracy: ([\d.]+) % before, ([\d.]+) % after", text)
  assert after >= before


def torch_gives_the_same(text):
  adsa_helps_the_tail(text)
  assert "the same soft labels: True" in text
  if "torch is not installed" not in text:
    assert numbers(r"torch: tau ([\d.]+)", text) == numbers(r"tau = ([\d.]+)", text)


def an_imbalanced_teacher_costs_the_tail(text):
  for images in ("balanced", "imbalanced"):
    pattern = rf"^{images} images: tail ([\d.]+) % by the balanced teacher, ([\d.]+) %"
    balanced, other = map(float, re.search(pattern, text, re.M).groups())
    assert other < balanced


def the_loss_falls(text):
  first, last = numbers(r"loss: ([\d.]+) at step \d+, ([\d.]+) at step", text)
  assert last < first / 2


def the_folder_is_counted(text):
  assert re.findall(r"^(\w+) +(\d+) training images$", text, re.M) == [
    ("four", "4"), ("one", "30"), ("three", "8"), ("two", "15"), ("zero", "60")
  ]  # fmt: skip


FACTS = {
  "new_method": the_loss_falls,
  "own_images": the_folder_is_counted,
  "own_logits": torch_gives_the_same,
  "quickstart": adsa_helps_the_tail,
  "where_bias_comes_from": an_imbalanced_teacher_costs_the_tail,
}


def test_every_notebook_states_a_fact():
  assert list(FACTS) == NAMES


def test_every_cell_ran_in_order_and_without_a_warning(executed):
  _, notebook = executed
  cells = code_cells(notebook)
  assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
  assert not [out for out in outputs(notebook) if out.get("name") == "stderr"]


def test_it_prints_what_it_promises(executed):
  name, notebook = executed
  FACTS[name](text_of(notebook))


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_notebook_is_short_and_has_small_outputs(name):
  path = ROOT / "notebooks" / f"{name}.ipynb"
  notebook = nbformat.read(path, as_version=4)
  assert 6 <= len(notebook.cells) <= 12
  assert path.stat().st_size < MAX_BYTES
  cells = code_cells(notebook)
  assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
  FACTS[name](text_of(notebook))
  assert any("image/png" in out.get("data", {}) for out in outputs(notebook))


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as shared:
    for chosen in sys.argv[1:] or NAMES:
      done = execute(chosen, pathlib.Path(shared))
      nbformat.write(done, ROOT / "notebooks" / f"{chosen}.ipynb")
