"""Test sets that are not balanced: what a calibration towards their prior is worth.

  python -m launch.main --config configs/digits_lt.py:calibrators=priors --workdir runs/priors
  python -m benchmarks.priors runs/priors

The balanced test set gives the accuracy of each class; weighted by a prior they give the expected
accuracy on a test set of that prior. Priors are those of `configs.base.calibrators`.
"""

import argparse

import numpy as np

from benchmarks import timing
from configs import base
from ltdd_jax.report import tables


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("workdir")
  results = tables.read_results(parser.parse_args().workdir)
  known = base.calibrators("priors", results["split"]["imbalance_factor"], results["dataset"])
  k = len(results["class_names"])
  priors = {"balanced": np.full(k, 1 / k)} | {
    f"{name}-heavy": np.array(known[f"nll_{name}"]["target_prior"]) for name in ("head", "tail")
  }
  rows = [
    (row["images"], row["labels"], *(f"{np.dot(row['per_class'], q):.1f}" for q in priors.values()))
    for row in results["rows"]
  ]
  print(timing.markdown(("images", "labels", *(f"{name} test" for name in priors)), rows))


if __name__ == "__main__":
  main()
