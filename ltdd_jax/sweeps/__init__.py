"""Sweeps: many configs by name, each in a process and a work directory of its own.

  python -m launch.sweep --config configs/sweeps/main_table.py:preset=smoke --workdir runs/table

Read `run.py` first. `cells.py` says what a cell is and when it is done, `pools.py` where cells run,
and `report.py` what is shown and written.
"""

from ltdd_jax.sweeps.run import run

__all__ = ["run"]
