"""Eight devices give the answers of one. Run in a process of its own: `python -m ...program`."""

import sys
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from ltdd_jax import distil  # noqa: E402
from ltdd_jax.artefacts import checkpoint  # noqa: E402
from ltdd_jax.core import mesh  # noqa: E402
from ltdd_jax.core.types import ArrayData  # noqa: E402
from ltdd_jax.data import feed  # noqa: E402
from ltdd_jax.distil.run import run_method  # noqa: E402
from ltdd_jax.labels import label as label_lib  # noqa: E402
from ltdd_jax.students import train as student_training  # noqa: E402
from ltdd_jax.teachers import statistics_pass  # noqa: E402
from ltdd_jax.teachers import train as teacher_training  # noqa: E402
from ltdd_jax.training import loop  # noqa: E402
from tests import small  # noqa: E402

TOLERANCE = 5e-5  # sums in another order, over a few steps of SGD with momentum


def sessions():
  one = loop.Session(mesh=mesh.make_mesh(jax.devices()[:1]), show_progress=False)
  many = loop.Session(mesh=mesh.make_mesh(), show_progress=False)
  assert many.mesh.size == 8
  return one, many


def compare(name, fn):
  one, many = (fn(session) for session in sessions())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float64), np.asarray(b, np.float64), atol=TOLERANCE, err_msg=name
    ),
    one,
    many,
  )
  print(name, "ok")


def train_teachers(session):
  data = ArrayData(small.images(40), np.arange(40, dtype=np.int32) % 3)
  (trained,) = teacher_training.train_teachers(
    data,
    small.SPEC,
    np.array([14, 13, 13]),
    models={"a": small.NET | {"norm": "batch"}},
    num_epochs=2,
    batch_size=16,
    optimizer={"name": "sgd", "lr": 0.05},
    schedule={"name": "cosine"},
    loss={"name": "cross_entropy"},
    augment=({"name": "random_flip"},),
    session=session,
  )
  return trained.variables


def statistics(session):
  data = ArrayData(small.images(21), np.arange(21, dtype=np.int32) % 3)  # 8 + 8 + 5 images
  options = {"tile": 4, "batch_size": 8, "session": session}
  flip = ({"name": "random_flip"},)
  return statistics_pass.collect(data, small.SPEC, (small.teacher(),), augment=flip, **options)


def distilled(session):
  method = distil.make_method(small.env(), "sre2l", num_steps=3)
  slots = small.slots(6, 5, 5)
  result = run_method(
    "a", method, small.env(), slots, small.resources(), batch_size=8, session=session
  )
  return result.images / 255.0 // 0.02  # a rounding of one level in a few pixels is not an error


def store(session):
  labelled = label_lib.label_images(
    "a", small.images(16), np.arange(16, dtype=np.int32) % 3, (small.teacher(),), small.SPEC,
    num_epochs=2, views={}, dtype="float32", batch_size=16, session=session,
  )  # fmt: skip
  return labelled.logits, labelled.clean_logits


def students(parallel):
  def train(session):
    n = 16
    result = student_training.train_students(
      "student/a",
      small.images(n),
      np.arange(n, dtype=np.int32) % 3,
      student_training.Supervision(),
      small.held_out(7),  # 21 images: the last batch of 8 is padded
      small.SPEC,
      model=small.NET | {"norm": "batch"},
      num_epochs=2,
      batch_size=8,
      optimizer={"name": "sgd", "lr": 0.05},
      schedule={"name": "cosine"},
      loss={"name": "kl"},
      views={},
      view_key=label_lib.view_key(0, "a"),
      num_seeds=2,
      evaluations=1,
      eval_batch_size=8,
      parallel=parallel,
      session=session,
    )
    assert result.total.sum() == 21
    return result.variables, result.correct

  return train


def save_on_eight_restore_on_one():
  one, many = sessions()
  value = np.arange(16, dtype=np.float32)
  place = lambda s: {"x": mesh.put(value, mesh.batch_sharding(s.mesh, 16))}
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
  compare("teacher", train_teachers)
  compare("statistics", statistics)
  compare("distil", distilled)
  compare("label", store)
  compare("students, one by one", students("loop"))
  compare("students, vmap", students("vmap"))
  save_on_eight_restore_on_one()
  sampler_is_the_same_everywhere()


if __name__ == "__main__":
  sys.exit(main())
