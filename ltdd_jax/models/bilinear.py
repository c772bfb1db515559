"""Bilinear functions whose transposes are given: derivatives of any order, forward and reverse.

convolution = bilinear(forward, image_gradient, kernel_gradient)

A function of images and a kernel, its gradient by the images and that by the kernel are all
bilinear, and the derivatives of each are made of the other two. So JAX never looks into them, which
`jax.custom_vjp` would give in reverse mode alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Form = Callable[[jax.Array, jax.Array], jax.Array]


class _Forms(NamedTuple):
  forward: Form  # images, kernel -> result
  to_images: Form  # result, kernel -> images
  to_kernel: Form  # images, result -> kernel


def bilinear(forward: Form, image_gradient: Form, kernel_gradient: Form) -> Form:
  """`forward(x, kernel)` with these gradients.

  Args:
    forward: (images, kernel) -> result.
    image_gradient: (gradient by the result, kernel) -> gradient by the images.
    kernel_gradient: (images, gradient by the result) -> gradient by the kernel.
  """
  forms = _Forms(forward, image_gradient, kernel_gradient)
  return functools.partial(_form.bind, forms=forms, way="forward")


def _compute(a: jax.Array, b: jax.Array, *, forms: _Forms, way: str) -> jax.Array:
  return getattr(forms, way)(a, b)


def _shape(a: Any, b: Any, **params: Any) -> Any:
  result = jax.eval_shape(functools.partial(_compute, **params), a, b)
  return jax.core.ShapedArray(result.shape, result.dtype)


def _to_first(cotangent: jax.Array, _: Any, b: jax.Array, *, forms: _Forms, way: str) -> jax.Array:
  """The transpose by the first argument."""
  bind = functools.partial(_form.bind, forms=forms)
  if way == "to_kernel":
    return bind(b, cotangent, way="to_images")
  return bind(cotangent, b, way="to_images" if way == "forward" else "forward")


def _to_second(cotangent: jax.Array, a: jax.Array, _: Any, *, forms: _Forms, way: str) -> jax.Array:
  """The transpose by the second argument."""
  bind = functools.partial(_form.bind, forms=forms)
  if way == "to_images":
    return bind(cotangent, a, way="to_kernel")
  return bind(a, cotangent, way="to_kernel" if way == "forward" else "forward")


def _batched(args: Any, axes: Any, *, forms: _Forms, way: str) -> tuple[jax.Array, int]:
  """Many at once; what is shared by all is repeated."""
  [size, *_] = (x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
  whole = (
    jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(args, axes, strict=True)
  )  # fmt: skip
  return _form.bind(*whole, forms=_Forms(*map(jax.vmap, forms)), way=way), 0


_form = Primitive("bilinear")
_form.def_impl(_compute)
_form.def_abstract_eval(_shape)
ad.defbilinear(_form, _to_first, _to_second)
batching.primitive_batchers[_form] = _batched
mlir.register_lowering(_form, mlir.lower_fun(_compute, multiple_results=False))
