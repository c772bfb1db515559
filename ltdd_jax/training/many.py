"""Several seeds of one training: one by one, or all at once under `vmap`, scored as they go.

Seeds differ in initialisation and order of images. The record of scores is part of the state of the
loop, so that checkpoints hold it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import ArrayData
from ltdd_jax.data import feed
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.training import loop, metrics


class Run(NamedTuple):
  """What the two ways of running seeds share."""

  name: str
  step: Callable[..., Any]
  init: Callable[[jax.Array], Any]
  apply_fn: Callable[..., Any]
  consts: dict[str, Any]
  test: ArrayData
  spec: DatasetSpec
  num_steps: int
  eval_steps: tuple[int, ...]
  eval_batch_size: int
  samplers: tuple[feed.BatchSampler, ...]
  seed: int
  session: loop.Session

  def keys(self, purpose: str) -> list[jax.Array]:
    """One key for each seed; the kind of label does not enter."""
    return [rng.key_for(self.seed, "student", purpose, i) for i in range(len(self.samplers))]

  def with_history(self, state: Any, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Adds the record of evaluations to the state, so that checkpoints hold it."""
    history = jnp.zeros((len(self.eval_steps), *seeds, self.spec.num_classes), jnp.int32)
    both = {"train": state, "correct": history}
    return mesh_lib.put(both, mesh_lib.replicated(self.session.mesh))

  def hook(self, eval_step: Callable[..., Any]) -> Callable[[int, Any], Any]:
    """Scores the students and writes the counts into the record."""

    def score(t: int, state: dict[str, Any]) -> dict[str, Any]:
      counts = metrics.run_eval(
        eval_step,
        state["train"].scored,
        self.test.images,
        self.test.labels,
        self.eval_batch_size,
      )
      row = self.eval_steps.index(t)
      correct = state["correct"].at[row].set(counts.correct.astype(jnp.int32))
      return {"train": state["train"], "correct": correct}

    return score

  def eval_step(self, *, seeds: bool) -> Callable[..., Any]:
    spec = self.spec
    return metrics.make_eval_step(
      self.apply_fn, spec.mean, spec.std, spec.num_classes, seeds=seeds, mesh=self.session.mesh
    )


def _keep_history(step: Callable[..., Any]) -> loop.StepFn:
  def step_fn(state, consts, x):
    new, step_metrics = step(state["train"], consts, x)
    return {"train": new, "correct": state["correct"]}, step_metrics

  return step_fn


def _inputs(sampler: feed.BatchSampler, t: int) -> dict[str, np.ndarray]:
  return {"indices": sampler(t), "epochs": sampler.epoch(t)}


def run_loop(run: Run) -> tuple[np.ndarray, Any]:
  """Trains one seed after another; returns correct (s, m, k) and what was scored, stacked."""
  init = jax.jit(run.init)
  hook = run.hook(run.eval_step(seeds=False))
  step_fn, compiled = _keep_history(run.step), {}
  correct, variables = [], []
  for i, sampler in enumerate(run.samplers):
    state = loop.run(
      step_fn,
      run.with_history(init(run.keys("init")[i]), ()),
      run.consts | {"key": run.keys("step")[i]},
      num_steps=run.num_steps,
      session=run.session,
      name=f"{run.name}/seed{i}",
      inputs=functools.partial(_inputs, sampler),
      hook=hook,
      hook_at=run.eval_steps,
      compiled=compiled,
    )
    correct.append(np.asarray(state["correct"]))
    variables.append(jax.device_get(state["train"].scored))
  return np.stack(correct), jax.tree.map(lambda *x: np.stack(x), *variables)


def run_vmap(run: Run) -> tuple[np.ndarray, Any]:
  """Trains all seeds in one program; returns what `run_loop` does."""
  state = jax.jit(jax.vmap(run.init))(jnp.stack(run.keys("init")))
  shared = jax.tree.map(lambda _: None, run.consts)

  def step(state, consts, x):
    axes = (0, shared | {"key": 0}, 0)
    return jax.vmap(run.step, in_axes=axes)(state, consts, x)

  def inputs(t: int) -> dict[str, np.ndarray]:
    rows = [_inputs(sampler, t) for sampler in run.samplers]
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}

  state = loop.run(
    _keep_history(step),
    run.with_history(state, (len(run.samplers),)),
    run.consts | {"key": jnp.stack(run.keys("step"))},
    num_steps=run.num_steps,
    session=run.session,
    name=f"{run.name}/seeds",
    inputs=inputs,
    hook=run.hook(run.eval_step(seeds=True)),
    hook_at=run.eval_steps,
  )
  correct = np.asarray(state["correct"]).swapaxes(0, 1)
  return correct, jax.device_get(state["train"].scored)
