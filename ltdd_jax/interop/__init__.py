"""Calibrates logits of any program: files or arrays in, soft labels out. Needs no word of JAX.

    from ltdd_jax.interop import calibrate_logits
    done = calibrate_logits("z.npy", "y.npy", "n.npy", out="labels.npz")
    done = calibrate_logits(logits, labels, counts)      # arrays; done.soft_labels is one

`python -m launch.calibrate` is the same as a command. Logits are read and labels written block by
block, so that `.npy` and `.safetensors` files may be larger than memory.
"""

from ltdd_jax.interop.calibrate_files import Calibration, calibrate_logits, run
from ltdd_jax.interop.job import Job, parse_args, prepare

__all__ = ["Calibration", "Job", "calibrate_logits", "parse_args", "prepare", "run"]
