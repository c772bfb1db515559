"""How often the bootstrap interval of ADSA's tau holds the tau of many images.

  python -m benchmarks.intervals

Simulated logits of ten classes, imbalance factor 100: noise, a margin for the true class that
differs from image to image, and 0.9 of log pi. The tau of 5,000 images a class stands for the
truth.
"""

import argparse

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported

import numpy as np  # noqa: E402

from benchmarks import timing  # noqa: E402
from ltdd_jax import calibrate  # noqa: E402
from ltdd_jax.adsa import Rows  # noqa: E402
from ltdd_jax.calibrate import criteria  # noqa: E402

K, BIAS = 10, 0.9
COUNTS = np.round(500 * 0.01 ** (np.arange(K) / (K - 1)))
LOG_PRIOR = np.log(COUNTS / COUNTS.sum())


def draw(generator: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
  """Logits (n, k) and classes (n,) of so many images a class."""
  labels = np.arange(images * K) % K
  noise = generator.standard_normal((len(labels), K))
  margin = 3 + 1.5 * generator.standard_normal((len(labels), 1))
  return (1.5 * noise + margin * np.eye(K)[labels] + BIAS * LOG_PRIOR).astype(np.float32), labels


def coverage(criterion: str, images: int, truth: float, repeats: int) -> tuple[float, ...]:
  """Share of intervals that hold the truth, their mean width, mean and spread of tau."""
  calibrator = calibrate.make_calibrator("adsa", criterion=criterion, bootstrap=200)
  generator, taus, intervals = np.random.default_rng(images), [], []
  for _ in range(repeats):
    report = calibrator.report(calibrator.fit(*draw(generator, images), LOG_PRIOR))
    taus.append(report["tau"])
    intervals.append(report["tau_interval"])
  low, high = np.transpose(intervals)
  hits = np.mean((low <= truth) & (truth <= high))
  return float(hits), float(np.mean(high - low)), float(np.mean(taus)), float(np.std(taus))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--images", type=int, nargs="+", default=(2, 3, 5, 10, 30))
  parser.add_argument("--repeats", type=int, default=200)
  args = parser.parse_args()
  rows = []
  many = Rows(*draw(np.random.default_rng(0), 5000))
  for criterion in ("confidence", "nll"):
    truth = criteria.fit(many, LOG_PRIOR, criterion, (0.0, 3.0)).tau
    for images in args.images:
      hits, width, mean, std = coverage(criterion, images, truth, args.repeats)
      rows.append((criterion, images, f"{truth:.3f}", f"{mean:.3f} ± {std:.3f}", f"{width:.3f}",
                   f"{100 * hits:.1f} %"))  # fmt: skip
  headers = ("criterion", "images a class", "truth", "tau", "width of the interval", "holds it")
  print(timing.markdown(headers, rows))


if __name__ == "__main__":
  main()
