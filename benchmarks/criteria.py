"""Which rule finds, without test data, the tau that is best on the test set?

  python -m benchmarks.criteria runs/a runs/b ...

Work directories must hold teachers and distilled images (`--stage=recover`). For each image source
and kind of view, tau is fitted to the teacher's logits by every rule; "lost" is how much lower
the accuracy of the teacher's own logits on the balanced test set is, in points, after a shift by
that tau than after the best one of a grid. The test set judges here, it chooses nothing.
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
from ltdd_jax.calibrate.criteria import CRITERIA  # noqa: E402
from ltdd_jax.data import augment  # noqa: E402
from ltdd_jax.data import views as views_lib  # noqa: E402
from ltdd_jax.labels import label as label_lib  # noqa: E402
from ltdd_jax.pipeline import check, stages  # noqa: E402

RULES: dict[str, dict[str, Any]] = {
  **{criterion: {"name": "adsa", "criterion": criterion} for criterion in CRITERIA},
}
GRID = np.arange(0, 3.0001, 0.05)
EPOCHS, BATCH = 20, 500
VIEWS: dict[str, dict[str, Any]] = {
  "crops + CutMix": {"crop_scale": (0.08, 1.0), "mix": "cutmix"},
  "crops 0.08-1": {"crop_scale": (0.08, 1.0), "mix": None},
  "crops 0.5-1": {"crop_scale": (0.5, 1.0), "mix": None},
  "clean": {"crop_scale": None, "flip": False, "mix": None},
}


def batches(total: int) -> list[np.ndarray]:
  """Row numbers in batches of one size; the last wraps round."""
  size = min(BATCH, total)
  return [(start + np.arange(size)) % total for start in range(0, total, size)]


def label(ctx: stages.Context, images_of: Any, arrays: Any, total: int) -> np.ndarray:
  """Logits (total, k) of the teachers on images (b, h, w, c), `images_of(arrays, rows)`."""
  teachers = ctx.teachers
  networks = tuple(t.model for t in teachers)

  @jax.jit
  def run(variables: Any, arrays: Any, rows: Any) -> Any:
    return label_lib.teacher_logits(networks, variables, images_of(arrays, rows))

  variables = tuple(t.variables for t in teachers)
  return np.concatenate([run(variables, arrays, rows) for rows in batches(total)])[:total]


def of_views(ctx: stages.Context, source: str, views: dict[str, Any]) -> tuple[Any, Any]:
  """Logits (e, n, k) of views, and classes (n,)."""
  images, classes = ctx.images(source)
  n, spec = len(classes), ctx.source.spec
  flip = ctx.config["label"]["views"].get("flip", True)
  views_of = views_lib.view_fn(spec, **{"flip": flip, **views})
  key = label_lib.view_key(ctx.config["seed"], source)
  epochs = EPOCHS if views["crop_scale"] else 1
  make = lambda arrays, rows: views_of(key, *arrays, rows % n, rows // n).images
  return label(ctx, make, (images, classes), epochs * n).reshape(epochs, n, -1), classes


def on_test(ctx: stages.Context) -> np.ndarray:
  """Accuracy of the teacher's logits on the test set after a shift by each tau of the grid."""
  test, spec = ctx.test_data, ctx.source.spec
  make = lambda pixels, rows: augment.normalize_pixels(pixels[rows] / 255.0, spec.mean, spec.std)
  logits = label(ctx, make, test.images, len(test.labels))
  log_prior = np.log(ctx.counts / ctx.counts.sum())
  return np.array([np.mean((logits - t * log_prior).argmax(1) == test.labels) for t in GRID])


def study(path: pathlib.Path) -> tuple[list[tuple[str, ...]], list[tuple[str, str, float]]]:
  """Rows of the table for one work directory, and (views, rule, points lost)."""
  ctx = stages.Context(check.check(json.loads((path / "config.json").read_text())))
  rows, losses, log_prior = [], [], np.log(ctx.counts / ctx.counts.sum())
  with workdir_lib.Workdir(path) as ctx.workdir:
    accuracy = on_test(ctx)
    best = f"{GRID[accuracy.argmax()]:.2f}"
    for source in stages.image_sources(ctx.config):
      for kind, views in VIEWS.items():
        cells = [path.name, best, source, kind]
        logits, classes = of_views(ctx, source, views)
        for name, rule in RULES.items():
          calibrator = calibrate.make_calibrator(**rule)
          found = calibrator.report(calibrator.fit(logits, classes, log_prior))
          lost = 100 * (accuracy.max() - np.interp(found["tau"], GRID, accuracy))
          losses.append((kind, name, lost))
          cells.append(f"{found['tau']:.2f} ({lost:.1f}){' flat' if found.get('flat') else ''}")
        rows.append(tuple(cells))
  return rows, losses


def summary(losses: list[tuple[str, str, float]]) -> str:
  """Mean and worst of the points lost, for each kind of view and rule."""
  rows = []
  for kind in VIEWS:
    cells = [kind]
    for rule in RULES:
      lost = [x for view, name, x in losses if (view, name) == (kind, rule)]
      cells.append(f"{np.mean(lost):.2f} ({max(lost):.1f})")
    rows.append(cells)
  return timing.markdown(("views", *(f"{c}: mean lost (worst)" for c in RULES)), rows)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
  startup.setup_jax()
  found = [study(path) for path in parser.parse_args().workdirs]
  header = ("run", "best tau", "images", "views", *(f"{c} (lost)" for c in RULES))
  print(timing.markdown(header, [row for rows, _ in found for row in rows]), end="\n\n")
  print(summary([loss for _, losses in found for loss in losses]))


if __name__ == "__main__":
  main()
