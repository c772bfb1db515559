"""Which bias do students have left, and does the training set show it?

  python -m benchmarks.residual runs/a runs/b ...

For the students of finished runs: their accuracy; the tau that "nll" reads off their logits of
training images that are not in the distilled set, and of the test set; and their accuracy on the
test set after a shift by that of the training set, by the bias of each class that is read there,
and by the best tau of a grid. The test set judges here, it chooses nothing. Means over seeds; a
dash where a class has no training image outside the distilled set.
"""

import argparse
import json
import pathlib
from typing import Any

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import timing  # noqa: E402
from ltdd_jax import calibrate  # noqa: E402
from ltdd_jax.artefacts import workdir as workdir_lib  # noqa: E402
from ltdd_jax.pipeline import check, stages  # noqa: E402
from ltdd_jax.pipeline import probing as probe  # noqa: E402
from ltdd_jax.report import tables  # noqa: E402

GRID = np.arange(-1.5, 2.0001, 0.05)
HEADER = (
  "run", "images", "labels", "top-1", "tau, training set", "tau, test set",
  "after that tau", "after the bias of each class", "best tau of a grid",
)  # fmt: skip


def measure(ctx: stages.Context, source: str, variables: Any) -> tuple[float, ...]:
  """The numbers of one student."""
  calibrator = calibrate.make_calibrator("adsa_probe")
  log_prior = np.log(ctx.counts / ctx.counts.sum())
  centred = log_prior - log_prior.mean()

  def read(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    params = calibrator.refine(calibrator.init(log_prior), logits, labels, log_prior)
    return float(params.student.anchor), np.asarray(params.student.bias)

  model, test = ctx.config["student"]["model"], ctx.test_data
  unseen = probe.unseen(ctx.train_data, ctx.images(source)[0])
  tau, bias = read(probe.logits_of(ctx, model, variables, unseen.images), unseen.labels)
  logits = probe.logits_of(ctx, model, variables, test.images)
  score = lambda shift: 100 * np.mean((logits - shift).argmax(1) == test.labels)
  best = max(score(t * centred) for t in GRID)
  on_test, _ = read(logits, test.labels)
  after = (score(tau * centred), score(bias)) if np.isfinite(tau) else (np.nan, np.nan)
  return score(0 * centred), tau, on_test, *after, best


def rows(path: pathlib.Path) -> list[tuple[str, ...]]:
  """A row for each kind of labels and images of a run."""
  ctx = stages.Context(check.check(json.loads((path / "config.json").read_text())))
  out = []
  with workdir_lib.Workdir(path) as ctx.workdir:
    for source in stages.image_sources(ctx.config):
      for regime in stages.regimes(ctx.config):
        students = ctx.workdir.load(f"student/{source}/{regime}").tree("students")
        count = len(jax.tree.leaves(students)[0])
        each = [
          measure(ctx, source, jax.tree.map(lambda x, i=i: x[i], students)) for i in range(count)
        ]
        digits = (1, 2, 2, 1, 1, 1)
        means = zip(np.mean(each, axis=0), digits, strict=True)
        cells = (tables.or_dash(x if np.isfinite(x) else None, f".{d}f") for x, d in means)
        out.append((path.name, source, regime, *cells))
  return out


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
  startup.setup_jax()
  found = [row for path in parser.parse_args().workdirs for row in rows(path)]
  print(timing.markdown(HEADER, found))


if __name__ == "__main__":
  main()
