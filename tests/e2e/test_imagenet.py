"""configs/imagenet_lt.py on a folder of JPEGs, and its settings of the real sizes."""

import numpy as np
import pytest

from configs import imagenet, imagenet_lt
from ltdd_jax import pipeline
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import sources, specs
from ltdd_jax.labels import encoding, store
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context
from tests import jpegs


@pytest.fixture
def folder(tmp_path):
  return jpegs.write(tmp_path / "imagenet")


def smoke(folder, **changes):
  config = imagenet_lt.get_config(f"path={folder},preset=smoke,calibrators=adsa,ipc=1")
  config.student.update(num_seeds=1, hard_labels=False)
  config.data.num_test = None
  del config.distil.methods.random
  config.distil.methods.edc.init.update(pool=4, num_crops=2, images_per_class=2)
  config.data.update(changes)
  return config


def test_constants_of_methods_on_imagenet():
  get = lambda method: imagenet_lt.get_config(f"path=somewhere,method={method}")
  assert get("sre2l").student.batch_size == 1024
  assert get("cda").student.batch_size == 128
  assert get("edc_released").distil.methods.edc_released.target_batch == 256
  rldd = get("rldd")
  assert rldd.distil.methods.rldd.num_steps == 1000
  assert (rldd.student.recipe, rldd.student.num_epochs) == ("rldd_mse_gt/imagenet", 1000)
  assert rldd.student.num_seeds == 5


def test_the_smoke_preset_runs_on_jpegs(folder, tmp_path):
  config = smoke(folder)
  results = pipeline.run(config, tmp_path / "run", show_progress=False)
  assert "28 training images (12 to 3 a class)" in (tmp_path / "run/report/report.md").read_text()
  assert results["rows"][0]["calibrator"] == "adsa"


def test_a_corrupt_image_in_the_stream_is_named(folder, tmp_path):
  file = folder / "train" / "n00000001" / "3.JPEG"
  file.write_bytes(file.read_bytes()[:90])
  with pytest.raises(LtddError, match=r"n00000001/3\.JPEG: cannot be read as an image .*Repair or"):
    pipeline.run(smoke(folder), tmp_path / "run", show_progress=False)


@pytest.fixture
def real_size(monkeypatch):
  """ImageNet's classes and sizes, and blank images."""
  spec, zero = specs.SPECS["imagenet2012"], np.uint8(0)
  train, test = (np.repeat(np.arange(1000, dtype=np.int32), n) for n in (1281, 50))
  read = lambda split, indices: np.broadcast_to(zero, (len(indices), *spec.image_shape))
  names = tuple(map(str, range(1000)))
  source = sources.DataSource(spec, train, test, read, names)
  monkeypatch.setattr(sources, "open_source", lambda *_, **__: source)


@pytest.mark.parametrize("method", imagenet.METHODS)
def test_every_method_has_settings_of_the_real_size(method, real_size):
  arg = f"path=somewhere,split=ltdd,method={method},ipc=50,calibrators=adsa"
  config = check.check(imagenet_lt.get_config(arg))
  ctx = Context(config)
  assert ctx.counts.sum() == 500_399
  traced = {f"distil/{method}"} if method in ("sre2l", "rded") else set()  # others take a minute
  check.check_with_data(ctx, {"teacher", *traced})
  stages = [stage.name for stage in graph.make_stages(ctx)]
  assert f"student/{method}/teacher/adsa" in stages
  assert config["student"]["recipe"].split(":")[0].endswith("/imagenet")
  assert config["student"]["num_epochs"] == (1000 if method == "rldd" else 300)


def test_students_label_bytes_and_lists():
  config = imagenet_lt.get_config("path=p,student=resnet101")
  assert config.student.model.to_dict() == {"name": "resnet101", "stem": "imagenet"}
  assert tuple(config.data.lists) == ("p/ImageNet_LT_train.txt", "p/ImageNet_LT_test.txt")
  assert config.data.rule == "as_is"
  stored = encoding.Encoding(config.label.dtype, config.label.top_k)
  assert store.disk_bytes((300, 50_000, 1000), stored) == pytest.approx(3e9, rel=0.02)


@pytest.mark.parametrize(
  ("arg", "said"),
  [
    ("", "path is empty: expected configs/imagenet_lt.py:path=FOLDER"),
    ("path=p,split=exp", "split is 'exp'; expected one of"),
    ("path=p,method=dm", "method is 'dm'; expected one of"),
    ("path=p,student=vgg11", "student is 'vgg11'; expected one of"),
    ("path=p,preset=cpu", "preset is 'cpu'; expected one of"),
  ],
)
def test_bad_arguments(arg, said):
  with pytest.raises(LtddError, match=said):
    imagenet_lt.get_config(arg)
