"""The test run is stricter than the program: no silent broadcasting, no key used twice."""

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def key():
  return jax.random.key(0)
