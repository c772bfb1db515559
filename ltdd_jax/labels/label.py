"""The logits that teachers give the views of distilled images.

Views (`data/views.py`) are recomputed and never stored; of imported ones, what made them is stored
(`data/view_records.py`). The label store (`store.py`) holds only the logits of the views,
`logits[e, i]`; a calibration, a temperature or a target prior can be changed after the fact.
(Released pipelines store crop, flip, permutation and box beside the logits, FKD.)
"""

import functools
import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ltdd_jax import models
from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core import rng
from ltdd_jax.core.types import LtddError, Teacher
from ltdd_jax.data import augment, crops, resident
from ltdd_jax.data import views as views_lib
from ltdd_jax.data.specs import DatasetSpec
from ltdd_jax.data.view_records import Records
from ltdd_jax.labels import by_class
from ltdd_jax.labels import encoding as encoding_lib
from ltdd_jax.labels import store as label_store
from ltdd_jax.teachers import aggregate as aggregate_lib
from ltdd_jax.training import forward, loop


def teacher_logits(
  networks: Sequence[Any],
  variables: Sequence[Any],
  images: jax.Array,
  aggregate: str = "mean",
  *,
  batch_norm: str = "eval",
) -> jax.Array:
  """One label (b, k) of the teachers' logits: aggregate first, then calibrate.

  `aggregate` is a key of `teachers.aggregate.AGGREGATES`. With `batch_norm` "train" batch norms use
  the statistics of these images, as in SRe2L's code on CIFAR-100, and "eval" those of training.
  """
  both = zip(networks, variables, strict=True)
  if batch_norm == "train":
    logits = [m.apply(v, images, train=True, mutable=["batch_stats"])[0] for m, v in both]
  else:
    logits = [m.apply(v, images, train=False) for m, v in both]
  return aggregate_lib.AGGREGATES[aggregate](jnp.stack(logits))


class Labelled(NamedTuple):
  """What labelling gives."""

  store: label_store.LabelStore  # encoded logits of views (e, n, k), on disk
  clean_logits: np.ndarray  # (n, k) float32, of the images without augmentation, or of their parts


GROUP_BYTES = 1 << 26  # label epochs are made in groups of about this size, and then written
STORE = "labels.zarr"  # the store's folder, in the artefact and before


def view_key(seed: int, source: str) -> jax.Array:
  """The key of all views of an image source; labelling and students use the same."""
  return rng.key_for(seed, "views", source)


def label_images(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  teachers: tuple[Teacher, ...],
  spec: DatasetSpec,
  *,
  num_epochs: int,
  views: dict[str, Any],
  dtype: str = "float16",
  top_k: int | None = None,
  batch_size: int = 500,
  compute_dtype: str = "float32",
  aggregate: str = "mean",
  batch_norm: str = "eval",
  class_names: Sequence[str] | None = None,
  stage: str | None = None,
  seed: int = 0,
  session: loop.Session | None = None,
) -> Labelled:
  """Labels `num_epochs` views of every distilled image, into a label store.

  Label epochs that the store has already are not made again, so that work that was stopped goes on.

  Args:
    name: of the image source.
    images: (n, h, w, c) uint8, or float32 pixels from 0 to 1.
    labels: (n,) int32, the classes of the images.
    teachers: those that label.
    spec: facts of the data set.
    num_epochs: label epochs, the labels of each image; a student of more epochs goes round again.
    views: keyword arguments of `data.views.view_fn`.
    dtype: "float32", "float16", "bfloat16" or "uint8"; this and the next are an `Encoding`.
    top_k: classes kept of each label, or None for all.
    batch_size: views in one pass.
    compute_dtype: of the teachers; see `models.computing_in`.
    aggregate: as of `teacher_logits`.
    batch_norm: as of `teacher_logits`; with "train" labels depend on `batch_size`, and those of
      images without augmentation are made as with "eval".
    class_names: the class map, number to name; None for that of `spec`.
    stage: name of loops, for messages and metrics; None for one after the image source.
    seed: the run's seed.
    session: devices, checkpoints, progress. The store is in its scratch, or if there is none, in a
      folder that is removed together with the result.

  Raises:
    LtddError: a bad encoding, fewer than one epoch, other labels in the scratch, or logits that
      are not finite in the dtype.
  """
  encoding = encoding_lib.Encoding(dtype, top_k)
  encoding.check(spec.num_classes)
  if num_epochs < 1:
    raise LtddError(f"config.label.num_epochs is {num_epochs}; expected 1 or more")
  session = session or loop.Session()
  numbers = map(str, range(spec.num_classes))
  names = list(class_names or spec.class_names or numbers)
  variables = tuple(t.variables for t in teachers)
  facts = {
    "source": name,
    "seed": seed,
    "views": views,
    "images": _digest((images, labels)),
    "teachers": _digest(variables),
    "aggregate": aggregate,
    "batch_norm": batch_norm,
    "compute_dtype": compute_dtype,
  }
  if batch_norm != "eval" or aggregate in aggregate_lib.BY_BATCH:
    facts["batch_size"] = batch_size
  shape = (num_epochs, len(labels), spec.num_classes)
  store = _make_store(session, shape, encoding, names, facts)
  consts = mesh_lib.put(
    {"labels": labels, "variables": variables}, mesh_lib.replicated(session.mesh)
  )
  consts["images"] = resident.images(images, session.mesh)
  consts["key"] = view_key(seed, name)
  networks = tuple(models.computing_in(t.model, compute_dtype) for t in teachers)
  label_fn = functools.partial(teacher_logits, networks, aggregate=aggregate)
  _label_epochs(
    stage or f"label/{name}",
    store,
    functools.partial(label_fn, batch_norm=batch_norm),
    consts,
    views_lib.view_fn(spec, **views),
    batch_size,
    session,
  )
  if views.get("parts", 1) > 1:
    label_fn = functools.partial(_mean_of_parts, label_fn, views["parts"], spec)
  clean = clean_logits(consts, label_fn, spec, batch_size, session.mesh)
  return Labelled(store, clean)


def _mean_of_parts(
  label_fn: Callable[[Any, jax.Array], jax.Array],
  parts: int,
  spec: DatasetSpec,
  variables: Any,
  images: jax.Array,
) -> jax.Array:
  """The mean logits of the parts x parts small images that each image holds, cut as in views."""
  pixels = augment.denormalize_pixels(images, spec.mean, spec.std)
  seen = crops.enlarge(crops.partition(pixels, parts), *images.shape[1:3])
  seen = augment.normalize_pixels(seen, spec.mean, spec.std)
  return jnp.stack([label_fn(variables, x) for x in seen]).mean(0)


def store_logits(
  name: str,
  images: np.ndarray,
  logits: np.ndarray,
  *,
  class_names: Sequence[str],
  session: loop.Session,
) -> Labelled:
  """Makes a label store of the logits of images: one label epoch, kept as float32.

  Args:
    name: of the image source.
    images: (n, h, w, c), the distilled images.
    logits: (n, k) float32.
    class_names: (k,) the class map.
    session: where the store goes.

  Raises:
    LtddError: logits of another shape, or that are not finite.
  """
  logits, shape = np.asarray(logits, np.float32), (len(images), len(class_names))
  check_logits(f"soft labels of image source {name!r}", logits, shape)
  encoding = label_store.Encoding("float32")
  facts = {"source": name, "images": _digest(images)}
  store = _make_store(session, (1, *shape), encoding, class_names, facts)
  if jax.process_index() == 0:
    store.write({0: encoding.encode(jnp.asarray(logits))})
  mesh_lib.barrier("label epochs written")
  return Labelled(store, logits)


def store_views(
  name: str,
  images: np.ndarray,
  read: Callable[[int], tuple[Records, np.ndarray]],
  shape: tuple[int, int, int],
  dtype: str,
  *,
  sha256: str,
  class_names: Sequence[str],
  session: loop.Session,
) -> tuple[label_store.LabelStore, Records]:
  """Makes a label store of logits of views that come with the records of these views.

  Args:
    name: of the image source.
    images: (n, h, w, c), the distilled images.
    read: label epoch -> its records (n, ...) and logits (n, k).
    shape: (e, n, k).
    dtype: of the store.
    sha256: of what `read` reads.
    class_names: (k,) the class map.
    session: where the store goes.

  Returns:
    The store, and the records (e, n, ...) of all views.
  """
  encoding = label_store.Encoding(dtype)
  facts = {"source": name, "images": _digest(images), "labels": sha256}
  store = _make_store(session, shape, encoding, class_names, facts)
  present, found = store.present(), []
  mesh_lib.barrier("label epochs listed")
  for epoch in range(shape[0]):
    records, logits = read(epoch)
    found.append(records)
    if jax.process_index() == 0 and epoch not in present:
      store.write({epoch: encoding.encode(jnp.asarray(logits, jnp.float32))})
  mesh_lib.barrier("label epochs written")
  return store, jax.tree.map(lambda *x: np.stack(x), *found)


def check_logits(where: str, logits: np.ndarray, shape: tuple[int, int]) -> None:
  """Raises LtddError unless there are finite logits of this shape (n, k), no probabilities."""
  if logits.shape != shape or not np.isfinite(logits).all():
    raise LtddError(
      f"{where} are {logits.dtype} of shape {logits.shape}; expected finite logits of shape "
      f"{shape}, one row for each distilled image"
    )
  by_class.check_no_probabilities(where, logits)


def _digest(tree: Any) -> str:
  """SHA-256 of all arrays of a tree; none of shapes."""
  if mesh_lib.has_shapes_alone():
    return ""
  total = hashlib.sha256()
  for leaf in jax.tree.leaves(jax.device_get(tree)):
    array = np.ascontiguousarray(leaf)
    total.update(f"{array.dtype.name} {array.shape} ".encode())
    total.update(array.tobytes())
  return total.hexdigest()


def _make_store(
  session: loop.Session,
  shape: tuple[int, int, int],
  encoding: encoding_lib.Encoding,
  class_names: Sequence[str],
  facts: dict[str, Any],
) -> label_store.LabelStore:
  """Makes or opens the store; the first process makes it, and the others wait for that."""
  scratch = session.scratch
  folder = scratch / STORE if scratch else epath.Path(tempfile.mkdtemp(prefix="ltdd_jax-"))
  create = functools.partial(
    label_store.create, folder, shape, encoding, class_names=class_names, facts=facts
  )
  store = create() if jax.process_index() == 0 else None
  mesh_lib.barrier("label store made")
  store = store or create()
  if not scratch:
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
  return store


def _inputs(size: int, first: int, total: int, t: int) -> tuple[np.int32, np.int32, np.int32]:
  """Where batch t of a group begins, the group's first label epoch, and its number of views."""
  return np.int32(t * size), np.int32(first), np.int32(total)


def _label_epochs(
  name: str,
  store: label_store.LabelStore,
  label_fn: Callable[[Any, jax.Array], jax.Array],
  consts: dict[str, Any],
  views_of: views_lib.ViewFn,
  batch_size: int,
  session: loop.Session,
) -> None:
  """Makes the label epochs that are missing, group by group.

  Groups, and the batches within them, do not depend on what is there, so that the bits of a label
  do not depend on where an earlier run was stopped.
  """
  e, n, k = store.shape
  encoding = store.encoding
  group = min(e, max(1, GROUP_BYTES // (n * encoding.row_bytes(k))))
  size = min(batch_size, group * n)

  def step_fn(state, consts, x):
    start, first, total = x
    flat = (start + jnp.arange(size, dtype=jnp.int32)) % total  # the last batch wraps round
    batch = views_of(consts["key"], consts["images"], consts["labels"], flat % n, first + flat // n)
    shown = mesh_lib.split_batch(session.mesh, batch.images)
    logits = label_fn(consts["variables"], shown)
    encoded = encoding.encode(logits)
    state = {key: state[key].at[flat].set(encoded[key]) for key in state}
    largest = jnp.maximum(encoding_lib.largest(encoded), jnp.max(jnp.abs(logits)))
    return state, {"max_logit": largest}  # inf: too large

  present = store.present()
  compiled: loop.Compiled = {}
  mesh_lib.barrier("label epochs listed")
  for first in range(0, e, group):
    epochs = range(first, min(first + group, e))
    missing = [i for i in epochs if i not in present]
    if not missing:
      continue
    part, total = f"{name}/epochs{first}-{epochs[-1]}", len(epochs) * n
    layout = encoding.layout(k).items()
    empty = {key: np.zeros((group * n, count), dtype) for key, (count, dtype) in layout}
    state = loop.run(
      step_fn,
      mesh_lib.put(empty, mesh_lib.replicated(session.mesh)),
      consts,
      num_steps=-(-total // size),
      session=session,
      name=part,
      inputs=functools.partial(_inputs, size, first, total),
      compiled=compiled,
      advice=f"logits may not fit into {encoding.dtype}: set config.label.dtype='float32'",
    )  # fmt: skip
    rows = {key: x.reshape(group, n, -1) for key, x in jax.device_get(state).items()}
    store.write({i: {key: x[i - first] for key, x in rows.items()} for i in _own(missing)})
    mesh_lib.barrier("label epochs written")
    if jax.process_index() == 0:
      session.discard(part)


def _own(epochs: list[int]) -> list[int]:
  """Those label epochs that this process writes."""
  return epochs[jax.process_index() :: jax.process_count()]


def clean_logits(
  consts: dict[str, Any],
  label_fn: Callable[[Any, jax.Array], jax.Array],
  spec: DatasetSpec,
  size: int,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Logits (n, k) of plain images, in batches of one size.

  Args:
    consts: `images` (n, h, w, c), as of `label_images`, and `variables`, on the mesh.
    label_fn: variables, normalised images (b, h, w, c) -> logits (b, k).
    spec: facts of the data set.
    size: images in a batch.
    mesh: devices to split a batch over.
  """

  @jax.jit
  def label(consts, rows, counts):
    del counts
    images = augment.normalize(consts["images"][rows], spec.mean, spec.std)
    return label_fn(consts["variables"], mesh_lib.split_batch(mesh, images))

  return forward.outputs(label, consts, len(consts["images"]), size)
