"""The whole run: `run(config, workdir)`. Read `run.py` first."""

from ltdd_jax.pipeline.run import run

__all__ = ["run"]
