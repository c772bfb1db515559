"""Sets that go on from one that exists: it is what images start from, or it stays and grows.

  config.distil.methods.moved = {"name": "edc", "init": {"name": "imported", "path": SET}}
  config.distil.methods.more = {"name": "edc", "on_top_of": SET}

SET is any `path` of `interop.distilled_sets.read`, and is known by its content. With `on_top_of`
slots of a rank that the set has keep its images, bit by bit; the method fills the others, and does
not look at those that are there.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ltdd_jax.core.types import LtddError, Slots
from ltdd_jax.interop.distilled_sets import Imported
from ltdd_jax.pipeline.context import Context


def init_set(ctx: Context, images: str) -> Imported | None:
  """The set that an image source starts from; None if it starts otherwise.

  Raises:
    LtddError: a set that cannot be read, of small images in one, or with too few images.
  """
  if "init_set" not in ctx.method(images).needs:
    return None
  where, init = f"config.distil.methods.{images}.init", _entry(ctx, images)["init"]
  found = ctx.set_at(where, init["path"])
  _check_parts(where, found, ctx.method(images).parts)
  have, want = _counts(ctx, found.labels), _counts(ctx, ctx.slots(images).labels)
  short = np.flatnonzero(have < want)
  if len(short) and init.get("rest") is None:
    c = short[0]
    raise LtddError(
      f"{where}: {found.about} has {have[c]} images of class {c}, which has {want[c]} slots; "
      "expected an image for each slot. Lower the budget, or name another start for the slots "
      "beyond the set, such as rest='real'"
    )
  return found


def base_set(ctx: Context, images: str) -> Imported | None:
  """The set that an image source adds images to; None if it makes all.

  Raises:
    LtddError: a set that cannot be read, a method or a set with more than images, images that are
      stored otherwise, or a budget that the set exceeds or fills.
  """
  if (path := _entry(ctx, images).get("on_top_of")) is None:
    return None
  method, where = ctx.method(images), f"config.distil.methods.{images}.on_top_of"
  if "file" in method.needs:
    raise LtddError(
      f"{where}: 'imported' takes a set as it is; expected a method that makes images"
    )
  found = ctx.set_at(where, path)
  _check_parts(where, found, method.parts)
  check_given(ctx, images, found.learned, f"the set {path}")
  dtype, there = ctx.config["distil"]["dtype"] or method.dtype, found.images.dtype.name
  if dtype != there:
    raise LtddError(
      f"{where}: {path} has {there} images, and the new ones would be {dtype}; expected one type. "
      f"Set config.distil.dtype={there!r}"
    )
  have, want = _counts(ctx, found.labels), _counts(ctx, ctx.slots(images).labels)
  over = np.flatnonzero(have > want)
  if len(over) or have.sum() == want.sum():
    c = over[0] if len(over) else 0
    raise LtddError(
      f"{where}: {path} has {have[c]} images of class {c}, which has {want[c]} slots; expected a "
      "set with at most as many images in every class, and fewer in one. Raise "
      "config.distil.images_per_class, which counts the images of the set too"
    )
  return found


def check_given(ctx: Context, images: str, given: Collection[str], what: str | None = None) -> None:
  """Raises LtddError if labels or a rate come with images of which some are of another set."""
  learned = sorted(set(given) & {"soft_labels", "student_lr"})
  if learned and _entry(ctx, images).get("on_top_of") is not None:
    what = what or f"method {_entry(ctx, images)['name']!r}"
    raise LtddError(
      f"config.distil.methods.{images}.on_top_of: {what} has {' and '.join(learned)}, learned for "
      "its own images together; expected images alone. Distil the whole budget, or start from the "
      "set by init={'name': 'imported', ...}"
    )


def new_slots(ctx: Context, images: str) -> Slots:
  """The slots that the method of an image source fills: those that no set has filled."""
  slots, base = ctx.slots(images), base_set(ctx, images)
  return slots if base is None else Slots(*(x[~_kept(ctx, base, slots)] for x in slots))


def joined(ctx: Context, images: str, new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of the whole set, in the order of the run's slots."""
  slots, base = ctx.slots(images), base_set(ctx, images)
  if base is None:
    return new
  kept, have = _kept(ctx, base, slots), _counts(ctx, base.labels)
  start, by_class = np.cumsum(have) - have, np.argsort(base.labels, kind="stable")
  pixels = np.empty((len(kept), *base.images.shape[1:]), base.images.dtype)
  pixels[kept] = base.images[by_class[start[slots.labels[kept]] + slots.rank[kept]]]
  pixels[~kept] = new["images"]
  return {"images": pixels, "labels": np.asarray(slots.labels, np.int32)}


def contents(ctx: Context, images: str) -> dict[str, Any]:
  """What a fingerprint has in the place of paths: what lies there."""
  found: dict[str, Any] = {}
  if first := init_set(ctx, images):
    init = _entry(ctx, images)["init"]
    found["init"] = {k: v for k, v in init.items() if k != "path"} | {"sha256": first.sha256}
  if base := base_set(ctx, images):
    found["on_top_of"] = {"sha256": base.sha256}
  return found


def notes(ctx: Context, images: str) -> list[str]:
  """What reports and `--dry_run` say of the sets."""
  found = []
  if first := init_set(ctx, images):
    unused = [f"{k} of the set that images start from: not used" for k in first.learned]
    found += [f"starts from {first.notes[0]}", *first.notes[1:], *unused]
  if base := base_set(ctx, images):
    found += [f"on top of {base.notes[0]}, which stay as they are", *base.notes[1:]]
  return found


def _entry(ctx: Context, images: str) -> Mapping[str, Any]:
  return ctx.config["distil"]["methods"][images]


def _counts(ctx: Context, labels: np.ndarray) -> np.ndarray:
  return np.bincount(labels, minlength=ctx.source.spec.num_classes)


def _kept(ctx: Context, base: Imported, slots: Slots) -> np.ndarray:
  """Which slots (n,) have an image of the set."""
  return slots.rank < _counts(ctx, base.labels)[slots.labels]


def _check_parts(where: str, found: Imported, parts: int) -> None:
  if found.parts != parts:
    each = lambda f: f"{f} x {f} small ones in each" if f > 1 else "one in each"
    raise LtddError(
      f"{where}: {found.about} has images of {each(found.parts)}, and the method's are of "
      f"{each(parts)}; expected the same. Use a set of the same formation"
    )
