"""A folder for Hugging Face's `datasets`: `load_dataset(FOLDER)["train"]`. Needs that package.

Columns are `image` (PNG, or an array of float32 pixels), `label` (a ClassLabel) and, where there
are soft labels, `soft_label`, the logits.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from ltdd_jax.core.types import LtddError
from ltdd_jax.interop.exports import record
from ltdd_jax.interop.exports.folders import png
from ltdd_jax.interop.exports.record import DistilledSet

FILE = "data/train-00000-of-00001.parquet"
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
# Distilled images

Soft labels, if any, are logits. Normalise pixels from 0 to 1 by `mean` and `std`.

```json
{}
```
"""


def write(found: DistilledSet, folder: epath.Path) -> None:
  """Writes Parquet by `datasets`, a card, and what has no column beside it."""
  try:
    import datasets
  except ImportError as error:
    raise _missing() from error
  if found.images.dtype == np.uint8:
    kind: Any = datasets.Image()
    column: Any = [{"bytes": png(image), "path": None} for image in found.images]
  else:
    kind, column = datasets.Array3D(found.images.shape[1:], "float32"), list(found.images)
  features = {"image": kind, "label": datasets.ClassLabel(names=list(found.class_names))}
  columns = {"image": column, "label": found.labels}
  if found.soft_labels is not None:
    length = found.soft_labels.shape[1]
    features["soft_label"] = datasets.Sequence(datasets.Value("float32"), length)
    columns["soft_label"] = list(found.soft_labels)
  made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
  (folder / "data").mkdir()
  with (folder / FILE).open("wb") as file:
    made.to_parquet(file)
  record.save(folder, found, skip=("soft_labels",))
  text = record.describe(found, "huggingface")
  (folder / record.ABOUT).write_text(text)
  shown = {k: v for k, v in json.loads(text).items() if k != "class_names"}  # features name them
  card = json.dumps(shown, indent=1).replace("<", "\\u003c").replace("`", "\\u0060")
  (folder / "README.md").write_text(_CARD.format(card))


def read(name: str, folder: epath.Path, about: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Reads an exported folder; raises LtddError if the file is damaged or the package is missing."""
  try:
    import pyarrow.parquet as parquet
  except ImportError as error:
    raise _missing() from error
  try:
    with (folder / FILE).open("rb") as file:
      table = parquet.read_table(file)
    shape = (about["num_images"], *about["image_shape"])
    if about["image_dtype"] == "uint8":
      rows = table["image"].to_pylist()
      pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows])
    else:
      pixels = _numbers(table["image"])
    arrays = {"images": pixels.reshape(shape), "labels": table["label"].to_numpy()}
    if "soft_label" in table.column_names:
      arrays["soft_labels"] = _numbers(table["soft_label"]).reshape(shape[0], -1)
  except Exception as error:  # damaged images raise anything
    raise LtddError(f"{name}: {FILE} is damaged or not as exported ({error})") from error
  return arrays | record.learned(name, folder, about)


def _numbers(column: Any) -> np.ndarray:
  """All float32 values of a column of nested lists."""
  array = column.combine_chunks()
  array = getattr(array, "storage", array)  # of an extension type
  while array.type.num_fields:  # lists, of whatever kind, have one field and numbers none
    array = array.flatten()
  return array.to_numpy(zero_copy_only=False).astype(np.float32)


def _missing() -> LtddError:
  return LtddError(
    "the format huggingface needs the package datasets; install it: pip install -e '.[huggingface]'"
  )
