"""The report of the scores study as Markdown."""

from collections.abc import Mapping
from typing import Any

from ltdd_jax.report import tables

SCORES = {
  "hlr": "hard-label recovery",
  "ior": "improvement over random",
  "lrs": "label-robust score",
  "ars": "augmentation-robust score",
}


LEAKAGE = (
  "Distances are L2 of pixels to the nearest training image of the class. Membership: the share "
  "of images that are nearer than 95% of the class's test images are. AUC: how often an image is "
  "nearer than a test image. Nearest is training: how often the nearest real image of the class "
  "is a training and not a test image. Without leakage they are as expected; smooth images too "
  "raise the first two."
)

Table = tuple[list[str], list[list[str]]]  # header, rows


def render(results: Mapping[str, Any]) -> str:
  """The report as Markdown."""
  last = "of the last step"
  if results["preset"] == "ddr":
    last = "best on test, over learning rates and evaluations, as DD-Ranking has it"
  n = results["counts"]
  each = f"{n[0]}" if min(n) == max(n) else f"{min(n)} to {max(n)}"
  parts = [
    f"# {results['dataset']}: scores of {results['images']}",
    f"Imbalance factor {results['imbalance_factor']:g}, {each} images a class. Scores and "
    f"accuracies are fractions; accuracies {last}, on the test set. Each run has its "
    f"scores: mean ± standard deviation (n - 1) over {results['runs']} runs. Smaller is better for "
    "hard-label recovery, larger for the rest; 0.269 is neutral for the last two.",
    *([f"Students by recipe {results['recipe']}."] if results["recipe"] else []),
    tables.table(*scores_table(results)),
    "## The accuracies",
    "Real: cross-entropy on the training set. Hard: on the distilled images. Own and "
    "random: these images and as many random real ones, with the labels named, and views of the "
    "config, of DSA, or none.",
    accuracies_table(results),
    "## Leakage",
    tables.table(*leakage_table(results)),
    LEAKAGE,
  ]
  return "\n\n".join(parts) + "\n"


def fraction(value: Mapping[str, Any]) -> str:
  """Mean and standard deviation, three decimals."""
  text = f"{value['mean']:.3f}"
  return text if value["std"] is None else f"{text} ± {value['std']:.3f}"


def scores_table(results: Mapping[str, Any]) -> Table:
  """A line for each kind of labels and group of classes."""
  rows = [
    [r["labels"], r["classes"], *(fraction(r["scores"][key]) for key in SCORES)]
    for r in results["rows"]
  ]
  return ["labels", "classes", *SCORES.values()], rows


def accuracies_table(results: Mapping[str, Any]) -> str:
  """What the scores are made of, for all classes."""
  whole = [r for r in results["rows"] if r["classes"] == "all"]
  names = [*whole[0]["accuracies"]]
  rows = [
    [r["labels"], r["random_labels"], *(fraction(r["accuracies"][k]) for k in names)] for r in whole
  ]
  return tables.table(["labels", "random's", *names], rows)


def leakage_table(results: Mapping[str, Any]) -> Table:
  """The self-test of the images and of the control, which are copies."""
  header = ["images", "distance", "of test images", "membership", "AUC", "nearest is training"]
  rows = [
    [
      name,
      f"{r['distance']:.3f}",
      f"{r['test_distance']:.3f}",
      f"{r['membership']:.3f}",
      f"{r['auc']:.3f}",
      f"{r['nearer_to_train']:.3f}",
    ]
    for name, r in results["leakage"].items()
  ]
  expected = f"{results['leakage'][results['images']]['nearer_expected']:.3f}"
  return header, [*rows, ["expected", "-", "-", "0.050", "0.500", expected]]
