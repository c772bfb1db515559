"""What soft labels cost: a student's step with and without calibration and with each encoding.

  python -m benchmarks.labels --rounds 11 --steps 20

Network, batch and views of `configs/cifar10_lt.py` with `preset=cpu`, on noise. Each way is
compiled once and takes its turn in every round; ratios are medians over rounds of the ratio within
the round, of CPU time on a CPU, which other programs disturb less, and of wall time elsewhere. The
ways differ by little, so the first is there twice: what its copy differs by is noise. "read alone"
is the label part of the step as a program of its own, its dispatch included; inside the step it is
fused with the rest, so this is an estimate of what reading costs. Then a store of large label
epochs is written and read.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import recipes, timing
from ltdd_jax.core import startup

DECODED = "decoded float32, none"
STORE_SHAPE = (4, 5_000, 1_000)  # label epochs, images, classes: 40 MB of float16 an epoch


def arguments() -> argparse.Namespace:
  p = timing.parser(__doc__)
  p.add_argument("--steps", type=int, default=20, help="in one turn")
  p.add_argument("--rounds", type=int, default=11, help="turns of each way")
  return p.parse_args()


def encodings(top_k: int) -> list[Any]:
  from ltdd_jax.labels.encoding import DTYPES, Encoding

  return [*map(Encoding, DTYPES), Encoding("float16", top_k), Encoding("uint8", top_k)]


def supervisions() -> dict[str, Any]:
  """The ways to read labels, by name."""
  import jax

  from ltdd_jax import calibrate
  from ltdd_jax.data import longtail
  from ltdd_jax.labels import sources

  case = recipes.CASES["student/convnet"]
  logits = recipes.random_logits(case["label_epochs"], case["images"])
  log_prior = longtail.log_prior(recipes.long_tail())
  labels = recipes.random_images(case["images"])[1]
  calibration = {}
  for name in ("none", "adsa"):
    calibrator = calibrate.make_calibrator(name)
    params = calibrator.fit(logits, labels, log_prior)
    calibration[name] = {"calibrator": calibrator, "params": params, "log_prior": log_prior}
  out = {DECODED: sources.Supervision("stored", logits=logits.astype("float32"))}
  out["the same again"] = out[DECODED]
  out["decoded float32, adsa"] = out[DECODED]._replace(**calibration["adsa"])
  for encoding in encodings(top_k=3):
    k = logits.shape[-1]
    encode = jax.jit(lambda rows, encoding=encoding: encoding.encode(rows))
    arrays = jax.device_get(encode(logits.reshape(-1, k).astype("float32")))
    arrays = {key: x.reshape(*logits.shape[:2], -1) for key, x in arrays.items()}
    decode = functools.partial(encoding.decode, k=k)
    for name in ("none", "adsa") if str(encoding) == "uint8" else ("adsa",):
      out[f"{encoding}, {name}"] = sources.Supervision(
        "stored", logits=arrays, decode=decode, **calibration[name]
      )
  return out


class Turn(NamedTuple):
  """Milliseconds of a step, and of reading its labels alone."""

  wall: float
  cpu: float
  alone: float


def make_turn(supervision: Any, steps: int) -> Callable[[], Turn]:
  """Compiles a way; returns the function that runs some steps."""
  import jax

  from ltdd_jax import models
  from ltdd_jax.core import rng
  from ltdd_jax.data import feed, specs
  from ltdd_jax.labels import label as label_lib
  from ltdd_jax.students import train as student_training
  from ltdd_jax.training import loop, losses, optimizers, supervised

  case, spec = recipes.CASES["student/convnet"], specs.SPECS["cifar10"]
  session = loop.Session(show_progress=False)
  model = models.make_model(
    num_classes=spec.num_classes, image_shape=spec.image_shape, **case["model"]
  )
  tx = optimizers.make_optimizer(case["optimizer"], {"name": "cosine"}, 1_000_000)
  batch_fn = recipes.student_batch(case, spec, supervision)
  step = functools.partial(
    supervised.train_step,
    apply_fn=model.apply,
    tx=tx,
    batch_fn=batch_fn,
    objective=supervised.of_logits(
      functools.partial(student_training.soft_loss, loss_fn=losses.make_soft_loss(**case["loss"]))
    ),
    num_steps=1_000_000,
    mesh=session.mesh,
  )
  state = jax.jit(lambda key: supervised.init_state(model, tx, key, spec.image_shape))(
    rng.key_for(0)
  )
  images, targets = recipes.random_images(case["images"])
  consts = {"images": images, "labels": targets, "logits": supervision.logits}
  if supervision.calibrator is not None:
    consts |= {"params": supervision.params, "log_prior": supervision.log_prior}
  consts = jax.device_put(consts) | {"view_key": label_lib.view_key(0, "a"), "key": rng.key_for(1)}
  sampler = feed.BatchSampler(0, "student/0", case["images"], case["batch"])
  compiled = loop.compile_step(step, state)
  inputs = [
    jax.device_put({"indices": sampler(t), "epochs": sampler.epoch(t)}) for t in range(steps)
  ]
  held = {"state": compiled(state, consts, inputs[0])[0]}
  read = jax.jit(functools.partial(read_labels, supervision=supervision))
  read(consts, inputs[0]).block_until_ready()

  def turn() -> Turn:
    wall, cpu = time.perf_counter(), time.process_time()
    for x in inputs:
      held["state"], metrics = compiled(held["state"], consts, x)
    jax.block_until_ready(metrics)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    alone = []
    for x in inputs * 4:
      start = time.perf_counter()
      read(consts, x).block_until_ready()
      alone.append(time.perf_counter() - start)
    return Turn(1e3 * wall / steps, 1e3 * cpu / steps, 1e3 * statistics.median(alone))

  return turn


def read_labels(consts: Any, x: Any, *, supervision: Any) -> Any:
  """What `student.make_batch` does to stored labels: takes rows, decodes and calibrates them."""
  import jax

  rows = jax.tree.map(lambda a: a[x["epochs"], x["indices"]], consts["logits"])
  logits = supervision.decode(rows) if supervision.decode else rows
  if supervision.calibrator is None:
    return logits
  return supervision.calibrator.apply(consts["params"], logits, consts["log_prior"])


def store_speed(encoding: Any, rounds: int) -> tuple[Any, ...]:
  """MB/s of encoded bytes written and read, and of decoded float32 logits from `rows`."""
  import jax

  from ltdd_jax.labels import store as label_store

  e, n, k = STORE_SHAPE
  logits = jax.random.normal(jax.random.key(0), (n, k)) * 5
  arrays = jax.device_get(jax.jit(encoding.encode)(logits))
  writes, reads, streams = [], [], []
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as folder:
      store = label_store.create(
        folder, STORE_SHAPE, encoding, class_names=list(map(str, range(k)))
      )
      start = time.perf_counter()
      store.write(dict.fromkeys(range(e), arrays))
      writes.append(store.nbytes / (time.perf_counter() - start) / 1e6)
      start = time.perf_counter()
      store.read()
      reads.append(store.nbytes / (time.perf_counter() - start) / 1e6)
      start = time.perf_counter()
      for row in range(0, e * n, 1000):
        store.rows(row, row + 1000)
      streams.append(4 * e * n * k / (time.perf_counter() - start) / 1e6)
      size = store.nbytes
  return (
    str(encoding),
    f"{size / 1e6:.1f}",
    *(timing.spread(x, 0) for x in (writes, reads, streams)),
  )


def main() -> None:
  args = arguments()
  os.environ.update(timing.choose_device(args.device))
  startup.tune_host()
  startup.setup_jax()
  import jax

  ways = {}
  for name, supervision in supervisions().items():
    timing.note(f"compiling {name}")
    ways[name] = make_turn(supervision, args.steps)
    ways[name]()
  times = timing.interleave(ways, args.rounds, pause=0.05)
  kind = "cpu" if jax.devices()[0].platform == "cpu" else "wall"
  column = lambda name, field: [getattr(t, field) for t in times[name]]
  rows = [
    (
      name,
      timing.spread(column(name, "wall"), 1),
      timing.spread(column(name, kind), 1),
      f"{timing.median_ratio(column(name, kind), column(DECODED, kind)):.3f}",
      f"{statistics.median(column(name, 'alone')):.3f}",
      f"{100 * timing.median_ratio(column(name, 'alone'), column(name, kind)):.2f} %",
    )
    for name in times
  ]
  line = timing.hardware(jax.devices()[0].device_kind, ("jax", "jaxlib", "flax", "tensorstore"))
  headers = (
    "labels, calibrator", "ms a step", f"{kind} ms a step", "of that / first row's",
    "read alone, ms", "of a step",
  )  # fmt: skip
  timing.finish(line, headers, rows, times, args.out)
  speeds = [store_speed(encoding, 3) for encoding in encodings(top_k=10)]
  headers = ("encoding", "MB on disk", "write, MB/s", "read, MB/s", "decoded by `rows`, MB/s")
  print(f"\n{timing.markdown(headers, speeds)}")


if __name__ == "__main__":
  main()
