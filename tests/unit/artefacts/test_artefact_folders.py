"""Folders that a stage wrote by itself, such as a label store, as part of its artefact."""

import pytest

from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core.types import LtddError


def test_a_folder_becomes_part_of_the_artefact(tmp_path):
  for name in ("one", "two"):
    with Workdir(tmp_path / name, cache=tmp_path / "cache") as work:
      if name == "one":
        made = work.scratch("label/x", {}, {}) / "store"
        (made / "inner").mkdir(parents=True)
        (made / "inner" / "c.0").write_bytes(b"labels")
        work.commit("label/x", config={}, inputs={}, arrays={}, folders={"labels.zarr": made})
        assert not made.exists()
      assert work.status("label/x", {}, {}) == "ready"
      artefact = work.load("label/x")
      path = artefact.folder("labels.zarr") / "inner" / "c.0"
      assert path.read_bytes() == b"labels"
      with pytest.raises(LtddError, match=r"has no folder 'x'; it has \['labels.zarr'\]"):
        artefact.folder("x")
  path.write_bytes(b"babels")
  with pytest.raises(LtddError, match=r"labels\.zarr/inner/c\.0 is damaged: its content"):
    Workdir(tmp_path / "two").load("label/x")
