"""The store holds the logits of views that are recomputed."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import augment, whitening
from ltdd_jax.data import views as views_lib
from ltdd_jax.labels import label as label_lib
from ltdd_jax.training import loop
from tests import small

QUIET = loop.Session(show_progress=False)
scratch = lambda folder: loop.Session(scratch=folder, show_progress=False)
IMAGES, LABELS = small.images(5), np.array([0, 1, 2, 0, 1], np.int32)


def label_images(spec=small.SPEC, **kwargs):
  kwargs = {"num_epochs": 3, "views": {}, "dtype": "float32", "batch_size": 4} | kwargs
  kwargs = {"session": QUIET} | kwargs
  return label_lib.label_images("a", IMAGES, LABELS, (small.teacher(),), spec, **kwargs)


def test_store_holds_the_logits_of_recomputed_views():
  kwargs = {"dsa": "color_crop_rotate", "mix_prob": 0.5}  # beside a crop and CutMix
  labelled = label_images(views=kwargs)
  logits = labelled.store.logits()
  assert logits.shape == (3, 5, small.K)
  views = jax.jit(views_lib.view_fn(small.SPEC, **kwargs))(
    label_lib.view_key(0, "a"), IMAGES, LABELS, jnp.array([4, 0, 2]), jnp.array([2, 1, 0])
  )
  t = small.teacher()
  want = t.model.apply(t.variables, views.images, train=False)
  np.testing.assert_allclose(logits[[2, 1, 0], [4, 0, 2]], want, atol=1e-5)
  clean = augment.normalize(IMAGES, small.SPEC.mean, small.SPEC.std)
  want = t.model.apply(t.variables, clean, train=False)
  np.testing.assert_allclose(labelled.clean_logits, want, atol=1e-5)


@pytest.mark.parametrize("whitened", [False, True])
def test_clean_logits_of_several_small_images_are_the_mean_of_theirs(whitened):
  """In 9 label epochs views show each of 9 parts once. Three does not divide the side of 8."""
  spec, found = small.SPEC, whitening.fit(IMAGES, 0.1)
  if whitened:
    spec = spec._replace(std=whitening.Whitening(spec.std, lambda: found))
  views = {"crop_scale": None, "flip": False, "mix": None, "parts": 3}
  labelled = label_images(spec, num_epochs=9, views=views)
  want = labelled.store.logits().mean(0)
  np.testing.assert_allclose(labelled.clean_logits, want, rtol=1e-4, atol=1e-5)


def test_float16_store_is_the_rounded_one():
  half, full = (label_images(dtype=dtype).store.logits() for dtype in ("float16", "float32"))
  np.testing.assert_array_equal(half, full.astype(np.float16))


def test_labels_without_a_scratch_go_with_the_result():
  labelled = label_images()
  part = labelled.store.first(2)
  path = labelled.store.path
  del labelled
  gc.collect()
  assert part.logits().shape == (2, 5, small.K)
  del part
  gc.collect()
  assert not path.exists()


class Killed(BaseException):
  """As if by a signal that cannot be caught."""


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_resumed_between_label_epochs_it_is_bit_for_bit_the_same(tmp_path, monkeypatch):
  """Groups of two label epochs; killed after the first group and one epoch of the second."""
  monkeypatch.setattr(
    label_lib, "GROUP_BYTES", 2 * 5 * label_lib.label_store.Encoding("uint8", 2).row_bytes(3)
  )
  kwargs = {"num_epochs": 5, "dtype": "uint8", "top_k": 2}
  made, run = [], loop.run
  monkeypatch.setattr(
    loop, "run", lambda *args, **kw: (made.append(kw["name"]), run(*args, **kw))[1]
  )
  straight = label_images(**kwargs, session=scratch(tmp_path / "straight"))
  assert made == [f"label/a/epochs{e}" for e in ("0-1", "2-3", "4-4")]

  write, session = label_lib.label_store.LabelStore.write, scratch(tmp_path / "killed")

  def write_and_die(self, epochs):
    if 2 in epochs:
      write(self, {2: epochs[2]})
      raise Killed
    write(self, epochs)

  with monkeypatch.context() as patch:
    patch.setattr(label_lib.label_store.LabelStore, "write", write_and_die)
    with pytest.raises(Killed):
      label_images(**kwargs, session=session)
  file = tmp_path / "killed" / label_lib.STORE / "values" / "c.2.0.0"
  before = file.stat().st_mtime_ns
  made.clear()
  resumed = label_images(**kwargs, session=session)
  assert made == [
    "label/a/epochs2-3",
    "label/a/epochs4-4",
  ]  # the first group was not made again
  assert file.stat().st_mtime_ns == before
  assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
  np.testing.assert_array_equal(resumed.store.logits(), straight.store.logits())
  made.clear()
  label_images(**kwargs, session=session)
  assert made == []
  left = [p for p in (tmp_path / "killed").rglob("*") if p.is_file()]
  assert all(label_lib.STORE in p.parts for p in left)


def test_labels_of_other_images_or_teachers_are_not_mixed(tmp_path):
  label_images(session=scratch(tmp_path))
  with pytest.raises(LtddError, match=r"facts\.seed: 0 -> 1"):
    label_images(session=scratch(tmp_path), seed=1)
  with pytest.raises(LtddError, match=r"facts\.teachers"):
    label_lib.label_images(
      "a", IMAGES, LABELS, (small.teacher(1),), small.SPEC, num_epochs=3, views={},
      dtype="float32", session=scratch(tmp_path),
    )  # fmt: skip


def test_several_teachers_are_averaged():
  one, two = small.teacher(), small.teacher(1)
  model, x = one.model, np.zeros((1, 8, 8, 1), np.float32)
  got = label_lib.teacher_logits((model, model), (one.variables, two.variables), x)
  want = [model.apply(t.variables, x, train=False) for t in (one, two)]
  np.testing.assert_allclose(got, (want[0] + want[1]) / 2, atol=1e-6)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"num_epochs": 0}, "num_epochs is 0"),
    ({"top_k": 4}, "top_k is 4; expected 1 to 3"),
  ],
)
def test_bad_numbers_are_refused(kwargs, message):
  with pytest.raises(LtddError, match=message):
    label_images(**kwargs)


def test_logits_too_large_for_the_dtype_are_an_error():
  t = small.teacher()
  huge = t._replace(variables=jax.tree.map(lambda x: x * 1e3, t.variables))
  with pytest.raises(LtddError, match="dtype='float32'"):
    label_lib.label_images(
      "a", IMAGES, LABELS, (huge,), small.SPEC, num_epochs=1, views={}, session=QUIET
    )


@pytest.mark.parametrize("how", [{"aggregate": "norm_equalised"}, {"batch_norm": "train"}], ids=str)
def test_labels_that_depend_on_their_batch_are_not_those_of_another_size(tmp_path, how):
  label = lambda size: label_lib.label_images(
    "a", IMAGES, LABELS, (small.teacher(), small.teacher(1)), small.SPEC, num_epochs=1, views={},
    batch_size=size, session=scratch(tmp_path), **how,
  )  # fmt: skip
  label(6)
  with pytest.raises(LtddError, match=r"holds other labels:\n  facts\.batch_size: 6 -> 3"):
    label(3)


def test_teachers_may_use_the_statistics_of_the_batch():
  """The same batch normalised by hand: its logits do not depend on the running statistics."""
  teacher = small.teacher()
  images = augment.normalize(IMAGES, small.SPEC.mean, small.SPEC.std)
  label = lambda variables, bn: label_lib.teacher_logits(
    (teacher.model,), (variables,), images, batch_norm=bn
  )
  other = jax.tree.map(lambda x: 2 * x + 1, teacher.variables["batch_stats"])
  both = (teacher.variables, teacher.variables | {"batch_stats": other})
  train, evals = ([label(v, bn) for v in both] for bn in ("train", "eval"))
  np.testing.assert_array_equal(*train)
  assert np.abs(evals[0] - evals[1]).max() > 1e-3
  assert np.abs(evals[0] - train[0]).max() > 1e-3


def test_probabilities_are_no_logits():
  logits = np.array([[2, 0, 0], [0, -1, 3]], np.float32)
  label_lib.check_logits("z.npy", logits, (2, 3))
  with pytest.raises(LtddError, match=r"z\.npy are probabilities, rows with a sum of 1; expected"):
    label_lib.check_logits("z.npy", np.asarray(jax.nn.softmax(logits)), (2, 3))
