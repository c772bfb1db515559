"""The commands of the README, and what each needs to run as a test: the one list of them.

`tests/unit/test_docs.py` holds that they are all here; `tests/e2e/test_readme.py` runs them.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
FAST = ("--config.student.num_seeds=1", "--config.student.hard_labels=False")
SMALL = ("--config.student.model.depth=1", "--config.student.model.width=4")
TEACHER = "--config.teacher.models={'a':{'name':'convnet','depth':1,'width':4,'norm':'batch'}}"

# Command -> (old, new) pairs that make it small, and flags that are added to it. The installation
# is not run here, since it needs a network: its extras are looked up, and `.ci/run` installs.
INSTALL = "pip install -e '.[report]'"
COMMANDS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
  INSTALL: ((), ()),
  "python -m launch.calibrate --logits z.npy --labels y.npy --counts n.npy --out labels.npz": (
    (),
    (),
  ),
  "python -m launch.main --config configs/digits_lt.py --workdir runs/digits": (
    (("digits_lt.py", "digits_lt.py:preset=smoke,calibrators=plain+adsa"),),
    FAST,
  ),
  "python -m launch.main --config configs/folder_lt.py:path=my/images,size=32 "
  "--workdir runs/mine": (
    (("size=32", "size=8,preset=smoke,calibrators=plain,method=random"),),
    ("--config.data.num_test=4", TEACHER, *FAST[:1], *SMALL),
  ),
  "python -m launch.main --config configs/cifar10_lt.py:method=edc,recipe=edc_mse_gt,imbalance=100,"
  "ipc=10,preset=cpu --workdir runs/edc": (
    (("preset=cpu", "preset=smoke,calibrators=plain"), ("imbalance=100", "imbalance=4")),
    (
      "--config.data.name=npz:cifar10.npz",
      "--config.data.num_test=20",
      "--config.distil.teachers=None",
      TEACHER,
      *FAST,
      *SMALL,
    ),
  ),
}


def blocks(language: str, page: pathlib.Path = README) -> list[str]:
  """The code blocks of a page in a language, in their order."""
  return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def commands() -> list[str]:
  """The commands in the README's bash blocks, each on one line."""
  lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
  return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip()]
