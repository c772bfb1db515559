"""The test run is stricter than the program: no silent broadcasting, no key used twice, and arrays
that are annotated with shapes have them.

Programs are compiled without most optimisations, and once for each process: compiling is
most of the time of a test. The older of XLA's two code generators for CPU takes half the time of
the newer one; jaxlib 0.12 has it no longer. The rest is tracing: a tenth of the time goes without
locations in programs and with fewer rounds of the garbage collector.
"""

import gc
import os
import tempfile
from importlib import metadata

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # before jax is imported
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
if metadata.version("jaxlib").startswith("0.10."):  # a flag that is not known ends the process
  os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401 (which the hook finds by name)

install_import_hook("ltdd_jax", "tests.typechecker.check")
gc.freeze()
gc.set_threshold(100_000, 50, 100)

_CACHE = tempfile.TemporaryDirectory(prefix="ltdd_jax_tests_", ignore_cleanup_errors=True)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)  # writing costs too
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture(autouse=True, scope="session")
def no_html_reports():
  """Runs write no HTML report, which takes seconds; tests of reports write theirs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("ltdd_jax.pipeline.results.write_page", lambda workdir: None)
    yield
