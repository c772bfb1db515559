"""A folder of JPEGs as ImageNet's: many sizes, grey and CMYK ones, and ImageNet-LT's list files.

python -m tests.jpegs FOLDER 100 50 [SIDE]     # classes, images of the largest one
"""

import pathlib
import sys

import numpy as np
from PIL import Image

from configs.imagenet_lt import LISTS


def write(folder, num_classes=4, largest=12, side=40, seed=0):
  """Counts fall to a quarter; half as many images a class are for the test."""
  draws, lines = np.random.default_rng(seed), {name: [] for name in LISTS}
  for c in range(num_classes):
    count = round(largest * 4 ** (-c / max(num_classes - 1, 1)))
    for split, images, name in zip(("train", "val"), (count, largest // 2), LISTS, strict=True):
      place = folder / split / f"n{c:08}"
      place.mkdir(parents=True)
      for i in range(images):
        file = place / f"{i}.JPEG"
        _image(draws, c, side).convert(("RGB", "L", "CMYK")[i % 8 % 3]).save(file, quality=90)
        lines[name].append(f"{split}/{place.name}/{file.name} {c}")
  for name, found in lines.items():
    (folder / name).write_text("\n".join(found) + "\n")
  return folder


def _image(draws, c, side):
  """A smooth picture with noise, of a colour of its class."""
  h, w = (int(side * draws.uniform(0.8, 1.6)) for _ in range(2))
  coarse = draws.integers(0, 256, (6, 8, 3), np.uint8) // 2 + np.uint8(c * 37 % 128)
  smooth = np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC), np.int16)
  noise = draws.normal(0, 6, smooth.shape)
  return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


if __name__ == "__main__":
  write(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5]))
