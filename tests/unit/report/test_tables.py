"""Tables of the report: groups of classes, and none for those that have no class."""

import numpy as np
import pytest

from ltdd_jax.data import longtail
from ltdd_jax.report import tables


@pytest.mark.parametrize(
  ("counts", "cells", "sentence"),
  [
    ((50, 9), ["80.0", "20.0"], "head 1 classes of 50 to 50 images; tail 1 classes of 9 to 9"),
    ((9, 50), ["20.0", "80.0"], "head 1 classes of 50 to 50 images; tail 1 classes of 9 to 9"),
    ((5,), ["80.0"], "mid 1 classes of 5 to 5 images"),
  ],
)
def test_groups_of_few_classes(counts, cells, sentence):
  correct = np.array([[[8, 2][: len(counts)]]])
  scores = tables.scores(correct, np.full(len(counts), 10), longtail.groups(counts))
  assert tables.group_cells(scores, tables.present_groups([scores])) == cells
  results = {"rows": [scores], "split": {"counts": counts}, "group_rule": "thirds"}
  assert sentence in tables._group_sentence(results)


def test_two_classes_have_no_column_for_mid():
  groups = longtail.groups([50, 5])
  score = tables.scores(np.array([[[9, 2]]]), np.array([10, 10]), groups)
  text = tables.teachers_table({"teachers": [{"name": "net"} | score]})
  header, _, row = text.splitlines()
  assert header.replace(" ", "") == "|teacher|top-1|head|tail|"
  assert row.replace(" ", "") == "|net|55.0|90.0|20.0|"


def test_confidences_that_are_not_known_have_no_column():
  found = {"confidence_before": [0.5, 0.5], "confidence_after": [None, None], "message": "probed"}
  row = {"images": "x", "labels": "teacher", "calibrator": "probe", "calibration": found}
  *_, text = tables._calibrations({"rows": [row], "class_names": "ab"})
  assert text.splitlines()[0].replace(" ", "") == "|class|xbefore|"


def test_confidences_before_say_of_which_labels_they_are():
  found = {"confidence_before": [0.5, 0.5], "confidence_after": [0.4, 0.4], "message": "fitted"}
  row = {"images": "x", "labels": "teacher", "calibrator": "adsa", "calibration": found}
  rows = [row, row | {"labels": "learned"}]
  *_, text = tables._calibrations({"rows": rows, "class_names": "ab"})
  header = [cell.strip() for cell in text.splitlines()[0].split("|")[1:-1]]
  assert header == ["class", "x before", "x adsa", "x learned before", "x learned adsa"]


@pytest.mark.parametrize("name", ["a|b", "a\nb", "a\tb", "a\x00b", "a\u2028b", "a\udcffb"])
def test_any_name_stays_in_its_cell(name):
  text = tables.table(["class", "top-1"], [[name, "50.0"]])
  assert len(text.splitlines()) == 3
  assert text.encode()
  assert text.splitlines()[2].replace("\\|", "").count("|") == 3
