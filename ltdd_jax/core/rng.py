"""Random keys from (seed, names): derived where they are needed, never stored, never threaded.

  key = key_for(config.seed, "student", step)      # a typed JAX key
  rng = np_rng(config.seed, "sampler", epoch)      # a NumPy generator, for draws on the host

Resuming needs no random state: the key of step 1000 is the same whether or not steps 0..999 ran in
this process. The habit is kauldron's (`kauldron/train/rngs_lib.py`).
"""

import zlib

import jax
import numpy as np


def _word(name: str | int) -> int:
  return zlib.crc32(name.encode()) if isinstance(name, str) else int(name) & 0xFFFFFFFF


def key_for(seed: int, *names: str | int) -> jax.Array:
  """Derives a typed key from a seed and a path of names or numbers."""
  key = jax.random.key(seed)
  for name in names:
    key = jax.random.fold_in(key, _word(name))
  return key


def np_rng(seed: int, *names: str | int) -> np.random.Generator:
  """Derives a NumPy generator (Philox) from a seed and a path of names or numbers."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *map(_word, names)])))
