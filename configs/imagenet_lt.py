"""ImageNet-1k-LT at 224 pixels, from a folder with ImageNet's train/ and val/. It was not run.

  python -m launch.main --workdir gs://bucket/edc --distributed \
      --config configs/imagenet_lt.py:path=/data/imagenet,method=edc,ipc=50

`split=oltr` is ImageNet-LT (Liu et al., CVPR 2019): 115,846 images of its list files, from 1,280 to
5 a class. `ImageNet_LT_train.txt` and `ImageNet_LT_test.txt` have to be in the folder; the latter
lists `val`. `split=ltdd` is LTDD's rule with `imbalance`, on all of `train`: 500,399 images for 10,
less what classes are short of, which keep all that they have, as LTDD's loader has it.

Images stay on disk (`config.data.stream_workers`). Test images are the centre 224 pixels of 256.
Soft labels have their 50 largest logits (`top_k`), 200 bytes each: 300 epochs of 50,000 images take
3 GB in place of 30; `--config.label.top_k=None` keeps all. Teachers and students compute in
bfloat16. The settings, and what is ours in them, are in `configs/imagenet.py`.

Arguments: path, split (oltr, ltdd), imbalance (10; of ltdd), method (sre2l, cda, gvbsm, edc,
edc_released, rldd, rded, random), ipc (10), student (resnet18, resnet50, resnet101), seed (0),
preset (full, smoke), recipe (a name of docs/reference/recipes.md), calibrators (few, all, or names:
plain+adsa).
"""

from configs import base, imagenet
from ltdd_jax.core.registry import check_choice
from ltdd_jax.core.types import LtddError
from ltdd_jax.data.specs import SPECS

LISTS = ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt")


def get_config(arg: str | None = None):
  """See the module's docstring."""
  args = base.arguments(
    arg, path="", split="oltr", imbalance=10.0, method="edc", ipc=10, student="resnet18", seed=0,
    preset="full",
  )  # fmt: skip
  if not args.path:
    raise LtddError("path is empty: expected configs/imagenet_lt.py:path=FOLDER, see its docstring")
  check_choice("split", args.split, ("oltr", "ltdd"))
  check_choice("method", args.method, imagenet.METHODS)
  check_choice("student", args.student, ("resnet18", "resnet50", "resnet101"))
  check_choice("preset", args.preset, ("full", "smoke"))
  if args.split == "oltr":
    args.imbalance = 1.0
  config = base.base(args, f"folder:{args.path}", "imagenet2012")
  spec = SPECS["imagenet2012"]
  config.data.update(
    image_size=224,
    crop_pct=0.875,
    mean=spec.mean,
    std=spec.std,
    on_unreadable="later",
    stream_workers=16,
  )
  if args.split == "oltr":
    config.data.update(rule="as_is", lists=tuple(f"{args.path}/{name}" for name in LISTS))
  config.statistics.tile = 16
  config.report.groups = "counts(100,20)"
  if args.preset == "smoke":
    base.finish(config, args)
    base.shrink(config, data__image_size=32, data__stream_workers=0, statistics__tile=4)
    return config
  args.recipe = base.with_values_of(args.recipe or imagenet.METHODS[args.method](args.ipc).recipe,
                                    "imagenet")  # fmt: skip
  base.finish(config, args)
  config.student.model = {"name": args.student, "stem": "imagenet"}
  config.label.update(top_k=50, batch_size=512)  # divides by slices of TPUs
  for group in ("teacher", "distil", "label", "student"):
    config[group].compute_dtype = "bfloat16"
  if args.method == "cda" and config.student.recipe.startswith("sre2l_kl"):
    config.student.batch_size = 128  # an author's, where SRe2L's are of 1,024
  if args.method == "gvbsm":  # G-VBSM's labels on ImageNet
    config.label.sources.teacher.aggregate = "norm_equalised"
  return config
