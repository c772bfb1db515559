"""Expert trajectories: the parameters of many networks after each epoch of their training.

  snapshots = train_experts(data, spec, num_experts=100, num_epochs=50)
  start, target = snapshots[expert, 3], snapshots[expert, 5]     # vectors, see `models.flat`
  classifiers = train_classifiers(data, spec, snapshots, classifier_epochs=10)

They are one memory-mapped array, of which methods that match trajectories read two rows in a step.
Classifiers may be trained further on balanced batches, with the features as the experts left them.
"""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ltdd_jax import models
from ltdd_jax.artefacts import checkpoint
from ltdd_jax.core import files, rng
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.registry import check_at_least, check_choice, within
from ltdd_jax.core.types import ArrayData, LtddError, TrainState
from ltdd_jax.data import augment as augment_lib
from ltdd_jax.data import dsa, feed
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.models.flat import CLASSIFIER, Flat, flat_params
from ltdd_jax.training import gsam, loop, losses, many, optimizers, supervised

NETWORK = {"name": "convnet", "depth": 3, "width": 128, "norm": "instance"}
SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.0}


def train_experts(
  data: ArrayData,
  spec: DatasetSpec,
  *,
  network: Mapping[str, Any] = NETWORK,
  num_experts: int = 100,
  num_epochs: int = 50,
  batch_size: int = 256,
  optimizer: Mapping[str, Any] = SGD,
  gsam_rho: float = 0.0,
  gsam_alpha: float = 0.3,
  augment: str | None = dsa.STRATEGY,
  at_once: int = 10,
  parallel: str = "auto",
  name: str = "experts",
  seed: int = 0,
  session: loop.Session | None = None,
) -> np.ndarray:
  """Trains experts as MTT does (Cazenave et al., CVPR 2022) and records them after each epoch.

  Each has its own initial parameters, order of images and views; the loss is the cross-entropy of
  hard labels, the rate is constant. A run that was stopped goes on with the expert, or the experts
  that are trained together, at their last checkpoint, and ends with the same bits.

  In what we differ from the released code: no batch is short, so epoch e ends with the first batch
  that completes e passes; experts are numbered and each can be made again, where the code seeds
  networks by the clock.

  Args:
    data: the long-tailed set, images (n,h,w,c) uint8 and labels (n,), on the device or host.
    spec: facts of the data set (classes, shape, mean, std).
    network: {name, **kwargs} of `models.make_model`, without batch norm.
    num_experts: trajectories.
    num_epochs: passes of each over the data.
    batch_size: images in a step.
    optimizer: see `optimizers.make_optimizer`; the schedule is constant.
    gsam_rho: radius of the perturbation of GSAM (`training.gsam`), whose steps cost twice as much:
      FTD's and DATM's experts have 0.01. At 0 the optimiser gets the gradient itself.
    gsam_alpha: of GSAM.
    augment: strategy of `dsa.dsa`, one operation a batch with strengths of each image, without
      "flip" for digits; None for no views.
    at_once: experts of one program where they are not trained one after another.
    parallel: see `many.train`.
    name: of this set of experts, for keys and files.
    seed: of initialisation, order and views.
    session: devices, checkpoints, progress.

  Returns:
    Float32 (num_experts, num_epochs + 1, p), on disk if the session has a folder; entry [i, 0] is
    expert i before its training.

  Raises:
    LtddError: an argument out of range, a network with batch norm, too little space on the disk, or
      training that diverged.
  """
  session = session or loop.Session()
  check_options(
    num_experts, num_epochs, batch_size, gsam_rho, gsam_alpha, augment, at_once, parallel
  )
  model, flat = make_network(spec, network)
  n, path = len(data.labels), f"trajectories/{name}"
  epochs = _ends(n, batch_size, num_epochs)
  tx = optimizers.make_optimizer(optimizer, {"name": "constant"}, epochs[-1], batch_size=batch_size)
  snapshots = _open(session, path, (num_experts, num_epochs + 1, flat.size))
  init = functools.partial(
    supervised.init_on_images,
    images_of=lambda consts: consts["data"].images,
    model=model,
    tx=tx,
    spec=spec,
  )

  def network_of(i: int) -> many.Network:
    key = functools.partial(rng.key_for, seed, f"{path}/{i}")
    sampler = feed.BatchSampler(seed, f"{path}/{i}", n, batch_size)
    return many.Network(f"{path}/{i}", key("init"), key("step"), sampler)

  _train(
    [network_of(i) for i in range(num_experts)],
    init,
    data,
    snapshots,
    flat.ravel,
    epochs,
    session,
    parallel=parallel,
    at_once=at_once,
    apply_fn=model.apply,
    tx=tx,
    batch_fn=functools.partial(_batch, spec=spec, augment=augment),
    value_and_grad=_value_and_grad(gsam_rho, gsam_alpha),
  )
  return snapshots


def train_classifiers(
  data: ArrayData,
  spec: DatasetSpec,
  experts: np.ndarray,
  *,
  classifier_epochs: int = 0,
  network: Mapping[str, Any] = NETWORK,
  batch_size: int = 256,
  optimizer: Mapping[str, Any] = SGD,
  gsam_rho: float = 0.0,
  gsam_alpha: float = 0.3,
  augment: str | None = dsa.STRATEGY,
  at_once: int = 10,
  parallel: str = "auto",
  name: str = "classifiers",
  seed: int = 0,
  session: loop.Session | None = None,
) -> np.ndarray:
  """Trains the classifier of each expert further, on batches with all classes equally frequent.

  These are the classifier experts of LAD (Zhao et al., CVPR 2025), whose method is `damed`. Each
  starts from its expert's last snapshot; all layers but the classifier stay as they are. Batches
  are those of `feed.ClassAwareSampler`, whose epochs are longer than the experts'. Views, rate and
  GSAM, whose norms are those of the classifier alone, are as in `train_experts`, and so are runs
  that were stopped; the weight decay is 0.

  In what we differ from the released code: as `train_experts`; each expert has a stream of batches
  of its own, where one goes on from expert to expert; classes without an image are left out.

  Args:
    data: as the other arguments, see `train_experts`.
    spec: facts of the data set.
    experts: (e, t, p) float32, the snapshots of `train_experts` with the same network.
    classifier_epochs: epochs of `feed.class_aware_epoch` images, 1 or more; in a config 0 for no
      classifier experts.
    network: that of the experts.
    batch_size: images in a step.
    optimizer: that of the experts; its weight decay is not used.
    gsam_rho: radius of the perturbation.
    gsam_alpha: of GSAM.
    augment: strategy of `dsa.dsa`, or None.
    at_once: classifiers of one program where they are not trained one after another.
    parallel: see `many.train`.
    name: of this set of classifiers, for keys and files.
    seed: of order and views.
    session: devices, checkpoints, progress.

  Returns:
    Float32 (e, classifier_epochs + 1, c), the last c of the p parameters; entry [i, 0] is that of
    expert i's last snapshot.

  Raises:
    LtddError: as `train_experts`.
  """
  session = session or loop.Session()
  num_experts = len(experts)
  check_options(
    num_experts, classifier_epochs, batch_size, gsam_rho, gsam_alpha, augment, at_once, parallel,
    epochs="classifier_epochs",
  )  # fmt: skip
  model, flat = make_network(spec, network)
  labels, path = np.asarray(data.labels), f"trajectories/{name}"
  ends = _ends(feed.class_aware_epoch(labels), batch_size, classifier_epochs)
  fixed = {**optimizer, "weight_decay": 0.0}
  tx = optimizers.make_optimizer(fixed, {"name": "constant"}, ends[-1], batch_size=batch_size)
  classifiers = _open(
    session, path, (num_experts, classifier_epochs + 1, flat.size - flat.num_features)
  )

  def init(vector: jax.Array, consts: Any) -> TrainState:
    del consts
    params = flat.unravel(vector)
    return TrainState(jnp.zeros((), jnp.int32), params, {}, tx.init(params))

  def network_of(i: int) -> many.Network:
    sampler = feed.ClassAwareSampler(seed, f"{path}/{i}", labels, batch_size)
    key = rng.key_for(seed, f"{path}/{i}", "step")
    return many.Network(f"{path}/{i}", experts[i, -1], key, sampler)

  _train(
    [network_of(i) for i in range(num_experts)],
    init,
    data,
    classifiers,
    lambda params: flat.ravel(params)[flat.num_features :],
    ends,
    session,
    parallel=parallel,
    at_once=at_once,
    apply_fn=model.apply,
    tx=tx,
    batch_fn=functools.partial(_batch, spec=spec, augment=augment),
    value_and_grad=of_classifier(_value_and_grad(gsam_rho, gsam_alpha)),
  )
  return classifiers


def of_classifier(value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a `value_and_grad` that differentiates by the classifier alone.

  The direction of all other layers is 0, and norms that the given one takes leave them out.
  """

  def made(fn: Callable[[Any], Any], has_aux: bool = False) -> Callable[[Any], tuple[Any, Any]]:
    def both(params: Any) -> tuple[Any, Any]:
      of = lambda classifier: fn({**params, CLASSIFIER: classifier})
      out, grads = value_and_grad(of, has_aux=has_aux)(params[CLASSIFIER])
      return out, {**jax.tree.map(jnp.zeros_like, params), CLASSIFIER: grads}

    return both

  return made


def _value_and_grad(rho: float, alpha: float) -> Callable[..., Any]:
  flatter = functools.partial(gsam.value_and_grad, rho=rho, alpha=alpha)
  return flatter if rho else jax.value_and_grad


def _ends(num_items: int, batch_size: int, num_epochs: int) -> list[int]:
  """The steps after which epochs 1, 2, ... are complete."""
  return [feed.num_steps(num_items, batch_size, num_epochs=e) for e in range(1, num_epochs + 1)]


def _train(
  networks: Sequence[many.Network],
  init: Callable[[Any, Any], TrainState],
  data: ArrayData,
  snapshots: np.ndarray,
  ravel: Callable[[Any], jax.Array],
  epochs: Sequence[int],
  session: loop.Session,
  *,
  parallel: str,
  at_once: int,
  **kwargs: Any,
) -> None:
  """Trains networks and records, at the start and the end of epochs, what `ravel` makes of them."""
  step = functools.partial(
    supervised.train_step,
    objective=supervised.of_logits(losses.cross_entropy),
    num_steps=epochs[-1],
    **kwargs,
  )
  rows = jax.jit(jax.vmap(ravel))
  many.train(
    networks,
    init,
    step,
    {"data": mesh_lib.put(data, mesh_lib.replicated(session.mesh))},
    num_steps=epochs[-1],
    session=session,
    parallel=parallel,
    at_once=at_once,
    watch={t: functools.partial(_record, snapshots, e, rows) for e, t in enumerate([0, *epochs])},
  )


def check_options(
  num_experts: int,
  num_epochs: int,
  batch_size: int,
  gsam_rho: float,
  gsam_alpha: float,
  augment: str | None,
  at_once: int,
  parallel: str,
  epochs: str = "num_epochs",
) -> None:
  """Raises LtddError for an option of `train_experts` that is out of range.

  `epochs` is the name of `num_epochs` in the config.
  """
  check_at_least(
    "config.trajectories.", 1, num_experts=num_experts, **{epochs: num_epochs},
    batch_size=batch_size, at_once=at_once,
  )  # fmt: skip
  check_at_least("config.trajectories.", 0, gsam_rho=gsam_rho, gsam_alpha=gsam_alpha)
  check_choice("config.trajectories.parallel", parallel, many.PARALLEL)
  if augment is not None:
    dsa.check_strategy(augment)


def make_network(spec: DatasetSpec, network: Mapping[str, Any]) -> tuple[nn.Module, Flat]:
  """Makes the experts' network, and says how its parameters lie in a vector."""
  with within("config.trajectories.network"):
    made = models.make_model(
      **{"name": "", **network}, num_classes=spec.num_classes, image_shape=spec.image_shape
    )
    return made, flat_params(made, spec.image_shape)


def _batch(
  consts: Mapping[str, Any],
  rows: jax.Array,
  key: jax.Array,
  *,
  spec: DatasetSpec,
  augment: str | None,
) -> tuple[jax.Array, jax.Array]:
  """Images (b,h,w,c) of these rows, in one view of DSA, and their labels (b,)."""
  data = consts["data"]
  images = augment_lib.normalize(data.images[rows], spec.mean, spec.std)
  images = images if augment is None else dsa.dsa(key, images, strategy=augment)
  return images, data.labels[rows]


# ---- the array ----


def _open(session: loop.Session, path: str, shape: tuple[int, int, int]) -> np.ndarray:
  """The array that a run that was stopped has left, or a new one.

  Without it the checkpoints of its experts are of no use, and go.
  """
  if session.scratch is None:
    return np.empty(shape, np.float32)
  file = files.path(session.scratch) / path / "snapshots.npy"
  need = 4 * int(np.prod(shape))
  if not files.is_local(file):  # nothing can be mapped there: a run that was stopped begins anew
    checkpoint.discard(file.parent)
    mesh_lib.barrier("trajectories opened")
    files.check_space(f"trajectories of shape {shape}", files.path(tempfile.gettempdir()), need)
    with tempfile.TemporaryFile() as local:
      return np.memmap(local, np.float32, "w+", shape=shape)
  found = _opened(file, shape)
  mesh_lib.barrier("trajectories looked for")  # before the first process makes them
  if found is not None:
    return found
  if jax.process_index() == 0:
    checkpoint.discard(file.parent)
    with files.explained(f"trajectories {file}", folder=file.parent, need=need):
      file.parent.mkdir(parents=True, exist_ok=True)
      files.check_space(f"trajectories of shape {shape}", file.parent, need)
      np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape).flush()
  mesh_lib.barrier("trajectories opened")
  return np.lib.format.open_memmap(file, mode="r+")


def _opened(file: epath.Path, shape: tuple[int, ...]) -> np.ndarray | None:
  try:
    found = np.lib.format.open_memmap(file, mode="r")  # "r+" would make a short file longer
  except (OSError, ValueError):  # not there, or truncated
    return None
  same = (found.shape, found.dtype) == (shape, np.float32)
  return np.lib.format.open_memmap(file, mode="r+") if same else None


def _record(
  snapshots: np.ndarray,
  epoch: int,
  ravel: Callable[[Any], jax.Array],
  networks: Sequence[many.Network],
  state: TrainState,
) -> None:
  """Writes the parameters of experts after an epoch to the disk."""
  vectors = np.asarray(mesh_lib.get(ravel(state.params)))
  for network, vector in zip(networks, vectors, strict=True):
    if not np.isfinite(vector).all():
      raise LtddError(
        f"{network.name}: its parameters hold NaN or infinity after epoch {epoch}, expected finite "
        "numbers; lower config.trajectories.optimizer.lr"
      )
    snapshots[int(network.name.rpartition("/")[2]), epoch] = vector
  if isinstance(snapshots, np.memmap):
    snapshots.flush()
