"""Eight devices give the answers of one. Run in a process of its own: `python -m ...program`."""

import contextlib
import functools
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from ltdd_jax import distil  # noqa: E402
from ltdd_jax.artefacts import checkpoint  # noqa: E402
from ltdd_jax.core import mesh as mesh_lib  # noqa: E402
from ltdd_jax.core.types import ArrayData  # noqa: E402
from ltdd_jax.data import feed, resident  # noqa: E402
from ltdd_jax.distil.run import run_method  # noqa: E402
from ltdd_jax.labels import label as label_lib  # noqa: E402
from ltdd_jax.labels import sources as label_sources  # noqa: E402
from ltdd_jax.models import convolution  # noqa: E402
from ltdd_jax.students import train as student_training  # noqa: E402
from ltdd_jax.teachers import statistics_pass, trajectories  # noqa: E402
from ltdd_jax.teachers import train as teacher_training  # noqa: E402
from ltdd_jax.training import loop  # noqa: E402
from ltdd_jax.training import many as many_lib  # noqa: E402
from tests import small  # noqa: E402

DEVICES = 8
TOLERANCE = 5e-5  # sums in another order, over a few steps of SGD with momentum


def sessions():
  one = loop.Session(mesh=mesh_lib.make_mesh(jax.devices()[:1]), show_progress=False)
  many = loop.Session(mesh=mesh_lib.make_mesh(), show_progress=False)
  assert many.mesh.size == DEVICES
  return one, many


def rows_of(text):
  """Images in the convolutions of a compiled program; those of a small network have 4 channels."""
  return {int(b) for b in re.findall(r"f32\[(\d+),8,8,4\]\S* convolution\(", text)}


@contextlib.contextmanager
def recorded():
  """Collects the images that each device has in the steps that run meanwhile."""
  seen, compile_step = set(), loop.compile_step

  def compile_and_look(*args):
    step, compiled = compile_step(*args), []

    def call(*arrays):
      if not compiled:
        compiled.append(step.lower(*arrays).compile())
        seen.update(rows_of(compiled[0].as_text()))
      return compiled[0](*arrays)

    return call

  with mock.patch.object(loop, "compile_step", compile_and_look):
    yield seen


def compare(name, fn, share):
  """Both give the same, and no device runs more than `share` images of a batch."""
  one, many = sessions()
  alone = fn(one)
  with recorded() as rows:
    together = fn(many)
  assert rows, name
  assert max(rows) <= share, (name, rows)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64), np.asarray(b, np.float64), atol=TOLERANCE, err_msg=name
    ),
    alone,
    together,
  )
  print(name, "ok")


def teachers(parallel, batch_size, count=1, **kwargs):
  """Teachers, rebuilt batch statistics and what the teachers score on 21 test images."""

  def train(session):
    data = ArrayData(small.images(40), np.arange(40, dtype=np.int32) % 3)
    trained = teacher_training.train_teachers(
      data,
      small.SPEC,
      np.array([14, 13, 13]),
      models={str(i): small.NET | {"norm": "batch"} for i in range(count)},
      num_epochs=1,
      batch_size=batch_size,
      optimizer={"name": "sgd", "lr": 0.05},
      schedule={"name": "cosine"},
      objective={"name": "cross_entropy"},
      augment=({"name": "random_flip"},),
      parallel=parallel,
      session=session,
      **kwargs,
    )
    counts = [
      teacher_training.evaluate(t, small.held_out(7), small.SPEC, batch_size=10, mesh=session.mesh)
      for t in trained
    ]
    assert all(c.total.sum() == 21 for c in counts)
    return [t.variables for t in trained], [c.correct for c in counts]

  return train


def experts(session):
  """Eight at once lie split over the devices, and the ninth alone does not."""
  options = {"network": small.NET, "num_experts": 9, "num_epochs": 1, "batch_size": 5}
  data = ArrayData(small.images(10), np.arange(10, dtype=np.int32) % 3)
  return trajectories.train_experts(
    data, small.SPEC, **options, augment=None, at_once=8, parallel="vmap", session=session
  )


def statistics(session):
  data = ArrayData(small.images(21), np.arange(21, dtype=np.int32) % 3)  # 10 + 10 + 1 images
  options = {"tile": 4, "batch_size": 10, "session": session}
  flip = ({"name": "random_flip"},)
  return statistics_pass.collect(data, small.SPEC, (small.teacher(),), augment=flip, **options)


def distilled(session):
  method = distil.make_method(small.env(), "sre2l", num_steps=3)
  slots = small.slots(6, 5, 5)
  result = run_method(
    "a", method, small.env(), slots, small.resources(), batch_size=10, session=session
  )
  return result.images / 255.0 // 0.02  # a rounding of one level in a few pixels is not an error


def store(session):
  labelled = label_lib.label_images(
    "a", small.images(16), np.arange(16, dtype=np.int32) % 3, (small.teacher(),), small.SPEC,
    num_epochs=2, views={}, dtype="float32", batch_size=5, session=session,
  )  # fmt: skip
  return labelled.store.logits(), labelled.clean_logits


HARD = label_sources.Supervision()


def students(parallel, num_seeds, supervision=HARD):
  def train(session):
    n = 16
    result = student_training.train_students(
      "student/a",
      small.images(n),
      np.arange(n, dtype=np.int32) % 3,
      supervision,
      small.held_out(7),
      small.SPEC,
      model=small.NET | {"norm": "batch"},
      num_epochs=2,
      batch_size=5,
      optimizer={"name": "sgd", "lr": 0.05},
      schedule={"name": "cosine"},
      loss={"name": "kl"},
      views={},
      view_key=label_lib.view_key(0, "a"),
      num_seeds=num_seeds,
      evaluations=2,
      eval_batch_size=10,
      parallel=parallel,
      session=session,
    )
    assert result.total.sum() == 21
    return result.variables, result.correct

  return train


def large(fn):
  """The same with images and labels that are large enough to be split over the devices."""

  def run(session):
    with mock.patch.object(resident, "LARGE", 0):
      return fn(session)

  return run


def stored(session):
  labelled = np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32)
  return students("loop", 1, label_sources.Supervision("stored", logits=labelled))(session)


def forward_passes_are_split():
  """No device runs the network on more than its share, rounded up, of 10 images."""
  net, (_, many) = small.teacher(), sessions()
  apply = lambda v, x, *, mesh: net.model.apply(v, mesh_lib.split_batch(mesh, 0.0 + x), train=False)
  images = np.zeros((10, *small.SPEC.image_shape), np.float32)

  def compiled(fn, variables):
    args = mesh_lib.put((variables, images), mesh_lib.replicated(many.mesh))
    return jax.jit(fn).lower(*args).compile().as_text()

  assert rows_of(compiled(functools.partial(apply, mesh=many.mesh), net.variables)) == {2}
  for count, share in ((3, {2}), (8, {10})):  # three go in turn; of eight each device has one
    several = jax.tree.map(lambda x, n=count: np.stack([x] * n), net.variables)
    text = compiled(many_lib.over_networks(apply, (0, None), many.mesh), several)
    assert rows_of(text) == share, (count, rows_of(text))
  print("split ok")


def large_convolutions_stay_split():
  """Loops over chunks of images run on each device's own; only kernels' gradients are summed."""
  one, many = sessions()
  x, k = np.ones((16, 8, 8, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
  x += np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
  convolve = functools.partial(
    convolution.convolve,
    window_strides=(1, 1),
    padding=[(1, 1), (1, 1)],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  step = jax.jit(jax.grad(lambda x, k: jax.numpy.sin(convolve(x, k)).sum(), (0, 1)))
  with mock.patch.object(convolution, "_LEAST", 0):
    place = lambda mesh: (
      mesh_lib.put(x, mesh_lib.split(mesh)),
      mesh_lib.put(k, mesh_lib.replicated(mesh)),
    )
    text = step.lower(*place(many.mesh)).compile().as_text()
    for a, b in zip(step(*place(one.mesh)), step(*place(many.mesh)), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
  assert "while" in text
  assert "all-reduce" in text
  assert "all-gather" not in text
  assert "all-to-all" not in text
  print("large convolutions ok")


def large_arrays_lie_split():
  """Rows that do not divide are filled up; what is picked is the same."""
  _, many = sessions()
  logits = np.arange(2 * 21 * 3, dtype=np.float32).reshape(2, 21, 3)
  for pixels in (small.images(21), np.arange(21 * 256).reshape(21, 8, 16, 2).astype(np.uint8)):
    _lie_split(many, pixels, logits)
  print("large arrays ok")


def _lie_split(many, pixels, logits):
  with mock.patch.object(resident, "LARGE", 0):
    images, rows = resident.images(pixels, many.mesh), resident.rows(logits, many.mesh, axis=1)
  assert {x.data.shape[0] for x in images.pixels.addressable_shards} == {3}
  assert {x.data.shape for x in rows.addressable_shards} == {(2, 3, 3)}
  picked = np.array([20, 0, 7, 7])
  found = jax.jit(lambda images, rows: (images[picked], images[:], rows[1, picked]))(images, rows)
  for a, b in zip(found, (pixels[picked], pixels, logits[1, picked]), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (len(images), images.shape) == (21, pixels.shape)


def save_on_eight_restore_on_one():
  one, many = sessions()
  value = np.arange(16, dtype=np.float32)
  place = lambda s: {"x": mesh_lib.put(value, mesh_lib.at_rest(s.mesh, 16))}
  with tempfile.TemporaryDirectory() as folder:
    progress = checkpoint.Progress(Path(folder) / "a")
    progress.save(3, place(many))
    progress.close()
    progress = checkpoint.Progress(Path(folder) / "a")
    step, state = progress.restore(place(one))
    progress.close()
  assert step == 3
  assert len(state["x"].sharding.device_set) == 1
  np.testing.assert_array_equal(state["x"], value)
  print("checkpoint ok")


def sampler_is_the_same_everywhere():
  a, b = (feed.BatchSampler(0, "x", 10, 4) for _ in range(2))
  assert all((a(t) == b(t)).all() for t in range(9))


def main():
  forward_passes_are_split()
  large_convolutions_stay_split()
  compare("teacher", teachers("loop", 10, derive=({"name": "recalibrate_bn"},)), 2)
  compare("teacher of two views", teachers("loop", 5, views=2), 2)
  compare("three teachers at once", teachers("vmap", 50, 3), 5)
  compare("nine experts, eight at once", experts, 5)
  compare("statistics", statistics, 2)
  compare("distil", distilled, 2)
  compare("label", store, 1)
  compare("students, one by one", students("loop", 2), 1)
  online = label_sources.Supervision("online", teachers=(small.teacher(),))
  compare("students of labels made on line", students("loop", 1, online), 1)
  compare("three students at once", students("vmap", 3), 1)
  compare("eight students at once", students("vmap", 8), 5)
  compare("label, large", large(store), 1)
  compare("student of stored labels, large", large(stored), 1)
  compare("eight students in turn, large", large(students("vmap", 8)), 1)
  large_arrays_lie_split()
  save_on_eight_restore_on_one()
  sampler_is_the_same_everywhere()


if __name__ == "__main__":
  sys.exit(main())
