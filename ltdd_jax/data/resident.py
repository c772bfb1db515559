"""Images and labels that lie on the devices, of which each step picks some rows.

consts = {"images": images(array, mesh), "logits": rows(logits, mesh, axis=1)}
consts["images"][picked]                    # (b, h, w, c), inside `jit`

Small arrays are whole on every device. Large ones are split: each device holds some of the rows,
and XLA brings those that a step picks to where they are used.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from ltdd_jax.core import mesh as mesh_lib
from ltdd_jax.core.types import Leaf

LARGE = 2**28  # bytes from which an array is split
_LANES = 128  # of a TPU


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitImages:
  """Images (n, h, w, c), split over devices; a TPU would lay out other shapes anew in each step."""

  pixels: Leaf  # (m, h * w * c / 128, 128), the last m - n rows are none
  shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # (n, h, w, c)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, rows: Any) -> jax.Array:
    """Images (*b, h, w, c) of rows (*b,) or of a slice."""
    if isinstance(rows, slice):
      rows = np.arange(len(self))[rows]
    return self.pixels[rows].reshape(*rows.shape, *self.shape[1:])


def images(array: np.ndarray, mesh: jax.sharding.Mesh) -> Any:
  """Places images (n, h, w, c): an array, or `SplitImages` for large ones."""
  if not is_split(array, mesh):
    return mesh_lib.put(array, mesh_lib.replicated(mesh))
  size = math.prod(array.shape[1:])
  flat = array.reshape(len(array), -1, size if size % _LANES else _LANES)
  return SplitImages(rows(flat, mesh), array.shape)


def rows(tree: Any, mesh: jax.sharding.Mesh, axis: int = 0) -> Any:
  """Places arrays with rows along an axis; large ones are split, and filled up to divide."""

  def place(x: Any) -> Any:
    if not is_split(x, mesh):
      return mesh_lib.put(x, mesh_lib.replicated(mesh))
    size = -(-x.shape[axis] // mesh.size)
    shape = (*x.shape[:axis], size * mesh.size, *x.shape[axis + 1 :])
    sharding = mesh_lib.split(mesh, axis)
    if mesh_lib.has_shapes_alone():
      return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
    part = lambda index: _filled(x[index], size, axis)
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(place, tree)


def _filled(part: np.ndarray, size: int, axis: int) -> np.ndarray:
  """The rows of a device, with zeros at the end if they are fewer than `size`."""
  missing = size - part.shape[axis]
  return np.pad(part, [(0, missing if i == axis else 0) for i in range(part.ndim)])


def is_split(array: Any, mesh: jax.sharding.Mesh) -> bool:
  """Whether an array is large, and there are several devices to split it over."""
  return mesh.size > 1 and array.nbytes >= LARGE
