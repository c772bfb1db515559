"""Where a training step spends its time on CPU: the compiled program, thunk by thunk.

    python -m benchmarks.thunks convnet             # or resnet18; half a minute
    taskset -c 0 python -m benchmarks.thunks resnet18

A thunk belongs to the layer and the direction in its `op_name`; a loop's belong to the loop. Times
are those of JAX's profiler, the mean of a few steps; on a machine that others use trust the shares
alone, from one core.
"""

from ltdd_jax.core import startup

startup.tune_host()  # before jax is imported

import argparse  # noqa: E402
import collections  # noqa: E402
import functools  # noqa: E402
import gzip  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402
import tempfile  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

from benchmarks import recipes, timing  # noqa: E402
from ltdd_jax import models  # noqa: E402
from ltdd_jax.training import losses, supervised  # noqa: E402

NETWORKS = {
  "convnet": {**recipes.CONVNET, "norm": "batch"},
  "mobilenet_v2": {"name": "mobilenet_v2"},
  "resnet18": recipes.RESNET,
}
LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(")
PART = re.compile(r"(stage\d|conv|depthwise|expand|project|norm|classifier)")


def make_step(model, tx):
  """The library's training step: (state, consts) -> state."""
  step = functools.partial(
    supervised.train_step,
    x=None,
    apply_fn=model.apply,
    tx=tx,
    batch_fn=lambda consts, x, key: (consts["images"], consts["labels"]),
    objective=supervised.of_logits(losses.cross_entropy),
    num_steps=1,
  )
  return jax.jit(lambda state, consts: step(state, consts)[0], donate_argnums=0)


def op_names(text: str) -> dict[str, str]:
  """The `op_name` of each instruction outside loops; of a fusion or loop without, that within."""
  found: dict[str, list[tuple[str, str, str]]] = {}  # computation -> instruction, op_name, callee
  inner, lines = set(), []
  for line in text.splitlines():
    head = re.match(r"(?:ENTRY )?%?([\w.\-]+) [({].*{$", line)
    if head:
      lines = found.setdefault(head.group(1), [])
    elif match := LINE.match(line):
      name = re.search(r'op_name="([^"]*)"', line)
      callee = re.search(r"(?:calls|body|to_apply)=%?([\w.\-]+)", line)
      inner |= set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", line))
      lines.append((match.group(1), name.group(1) if name else "", callee[1] if callee else ""))

  def within(computation: str) -> str:
    for _, name, callee in reversed(found.get(computation, [])):
      if name := name or within(callee):
        return name
    return ""

  outside = (entry for key, each in found.items() if key not in inner for entry in each)
  return {instruction: name or within(callee) for instruction, name, callee in outside}


def kind(name: str) -> tuple[str, str]:
  """Part of the network, and what is done there."""
  parts = [PART.search(token) for token in name.split("/")]
  layers = [match.group(1) for match in parts if match]
  way = "backward" if "transpose(" in name else "forward"
  if "jvp(" not in name:
    return "-", "optimiser and loss"
  stage = next((x for x in layers if x.startswith("stage")), "-")
  last = next((x for x in reversed(layers) if not x.startswith("stage")), "relu, pool, sum")
  return stage, f"{last}, {way}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("network", choices=NETWORKS)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--steps", type=int, default=3)
  args = parser.parse_args()
  shape = recipes.IMAGE_SHAPE
  model = models.make_model(
    num_classes=recipes.CLASSES, image_shape=shape, **NETWORKS[args.network]
  )
  tx = optax.sgd(0.01, 0.9)
  state = supervised.init_state(model, tx, jax.random.key(0), shape)
  consts = {
    "images": jax.random.normal(jax.random.key(1), (args.batch, *shape)),
    "labels": jnp.arange(args.batch) % recipes.CLASSES,
    "key": jax.random.key(2),
  }
  step = make_step(model, tx).lower(state, consts).compile()
  names = op_names(step.as_text())
  state = jax.block_until_ready(step(state, consts))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(args.steps):
        state = jax.block_until_ready(step(state, consts))
    [file] = pathlib.Path(folder).rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
  times: collections.Counter[tuple[str, str]] = collections.Counter()
  for event in events:
    if (thunk := event.get("args", {}).get("hlo_op")) in names:
      times[kind(names[thunk])] += event["dur"] / 1e3 / args.steps
  total = sum(times.values())
  rows = [(*key, f"{ms:.1f}", f"{100 * ms / total:.0f} %") for key, ms in times.most_common()]
  print(timing.hardware("cpu", ("jax", "jaxlib", "flax")))
  print(timing.markdown(("part", "what", "ms", "share"), [*rows, ("all", "", f"{total:.1f}", "")]))


if __name__ == "__main__":
  main()
