"""The rows of a report: images, the source of their labels, a calibrator."""

from typing import NamedTuple

HARD = "hard"  # the label source that is none


class Row(NamedTuple):
  """Images, the source of their labels, and what is done to these: a row of the report."""

  images: str
  labels: str = HARD
  calibrator: str | None = None

  def stage(self, kind: str) -> str:
    """The name of the stage of this kind that makes something of the row."""
    length = {"distil": 1, "label": 2}.get(kind, 3)
    return "/".join([kind, *(x for x in self[:length] if x is not None)])
