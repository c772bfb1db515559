"""Calibrates logits of any program: files or arrays in, soft labels out. Needs no word of JAX.

    from ltdd_jax.interop import calibrate_logits
    done = calibrate_logits("z.npy", "y.npy", "n.npy", out="labels.npz")
    done = calibrate_logits(logits, labels, counts)      # arrays; done.soft_labels is one

`python -m launch.calibrate` is the same as a command; `docs/how-to/calibrate_logits.md` starts
from a torch tensor. Logits are read and labels written block by block: memory beyond the page
cache is that of a few blocks of a million logits, the labels' class of each row, and programs,
however long the file.

    names.py      "store.npz:logits": which array of which file
    arrays.py     .npy, .npz, .safetensors and raw files, as memory maps where possible
    parquet.py    .parquet, by row groups
    sources.py    rows of any of these
    inputs.py     checks of logits, labels and counts against each other
    writing.py    .npz and .npy, whole or not at all
    streaming.py  one pass: calibrated labels, and class confidences
"""

from ltdd_jax.interop.calibrate_files import (
  Calibration,
  Job,
  calibrate_logits,
  parse_args,
  prepare,
  run,
)

__all__ = ["Calibration", "Job", "calibrate_logits", "parse_args", "prepare", "run"]
