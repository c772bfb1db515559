"""Recipes: their constants by the sheet; names, errors, what a run changed."""

import jax
import numpy as np
import pytest

from configs import cifar10_lt, digits_lt
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import dsa as dsa_lib
from ltdd_jax.data import views as views_lib
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context
from ltdd_jax.students import recipes
from ltdd_jax.students.recipes import changes
from ltdd_jax.training import losses, optimizers
from tests import small

R18, CONV3 = {"name": "resnet18"}, {"name": "convnet", "depth": 3}


def get(reference, dataset="cifar10", ipc=10, model=R18, **kwargs):
  return recipes.resolve(reference, dataset=dataset, ipc=ipc, model=model, **kwargs)


@pytest.mark.parametrize(
  ("reference", "dataset", "ipc", "want"),
  [
    ("sre2l_kl", "cifar100", 50, (400, 128, "adamw", 1e-3, "all", "cosine")),
    ("sre2l_kl", "tiny", 50, (100, 256, "sgd", 0.2, "all", "warmup_cosine")),
    ("rded_kl", "cifar10", 1, (300, 10, "adamw", 1e-3, "kernels", "smooth")),
    ("rded_kl", "cifar100", 10, (300, 100, "adamw", 1e-3, "kernels", "smooth")),
    ("rded_kl", "imagenet", 50, (300, 200, "adamw", 1e-3, "kernels", "smooth")),
    ("rded_kl", "tiny", 1, (300, 100, "adamw", 1e-3, "kernels", "smooth")),
    ("gvbsm_mse_gt", "cifar100", 10, (1000, 64, "sgd", 0.1, "kernels", "cosine")),
    ("edc_mse_gt", "cifar10", 10, (1000, 25, "adamw", 1e-3, "kernels", "multistep")),
    ("edc_mse_gt:released", "cifar10", 1, (1000, 10, "adamw", 1e-3, "kernels", "multistep")),
    ("edc_mse_gt", "cifar100", 10, (1000, 50, "adamw", 1e-3, "kernels", "smooth")),
    ("edc_mse_gt:released", "cifar100", 10, (1000, 50, "sgd", 0.1, "kernels", "ssrs")),
    ("edc_mse_gt", "tiny", 1, (1000, 100, "adamw", 1e-3, "kernels", "smooth")),
    ("edc_mse_gt:released", "imagenet", 10, (300, 100, "adamw", 1e-3, "kernels", "linear")),
    ("rldd_mse_gt", "cifar10", 10, (1000, 25, "adamw", 1e-3, "kernels", "multistep")),
    ("rldd_mse_gt", "cifar100", 10, (1000, 100, "sgd", 0.1, "kernels", "ssrs")),
    ("rldd_mse_gt", "tiny", 10, (1000, 100, "sgd", 0.1, "kernels", "smooth")),
    ("rldd_mse_gt", "imagenet", 10, (1000, 100, "adamw", 1e-3, "kernels", "ssrs")),
    ("dc_eval", "anything", 7, (300, 256, "sgd", 0.01, "all", "multistep")),
    ("dsa_eval", "anything", 7, (1000, 256, "sgd", 0.01, "all", "multistep")),
    ("mtt_eval", "anything", 7, (1000, 256, "sgd", None, "all", "multistep")),
    ("datm_eval", "anything", 7, (1000, 128, "sgd", None, "all", "multistep")),
    ("dream_eval", "anything", 7, (4000, 64, "sgd", 0.01, "all", "multistep")),
    ("frepo_eval", "cifar10", 10, (2000, 100, "adam", 3e-4, None, "warmup_cosine")),
    ("frepo_eval", "tiny", 10, (10_000, 500, "adam", 3e-4, None, "warmup_cosine")),
    ("rd3", "anything", 7, (400, 50, "adam", 1e-3, None, "smooth")),
  ],
)
def test_values_of_the_published_code(reference, dataset, ipc, want):
  s = get(reference, dataset, ipc)["student"]
  optimizer = s["optimizer"]
  assert want == (
    s["num_epochs"], s["batch_size"], optimizer["name"], optimizer["lr"], optimizer.get("decay"),
    s["schedule"]["name"],
  )  # fmt: skip


def test_details_that_only_one_method_has():
  rded, edc = get("rded_kl")["student"], get("edc_mse_gt")["student"]
  assert (rded["model"], rded["ema"]) == (R18 | {"bn_momentum": 0.81}, None)
  assert "model" not in get("rded_kl", model={"name": "alexnet"})["student"]
  assert ("model" in edc, edc["ema"]) == (False, 0.99)
  assert get("edc_mse_gt:released", "tiny")["student"]["optimizer"]["momentum"] == 0.875
  assert get("sre2l_kl", "tiny")["student"]["loss"]["squared"]
  assert not get("sre2l_kl", "cifar100")["student"]["loss"]["squared"]
  assert get("rded_kl", "imagenet")["views"]["shuffle_patches"] == 2
  assert get("rded_kl", "cifar10")["views"]["crop_scale"] is None
  assert get("edc_mse_gt", "cifar10")["views"]["rand_augment"] is True
  assert get("edc_mse_gt", "imagenet")["views"]["rand_augment"] is False
  rldd = {name: get("rldd_mse_gt", name) for name in ("cifar10", "cifar100", "tiny")}
  weights = [r["student"]["loss"]["ce_weight"] for r in rldd.values()]
  assert (weights, rldd["tiny"]["student"]["num_seeds"]) == ([0.025, 0.0, 0.025], 5)
  assert [r["views"]["crop_scale"][0] for r in rldd.values()] == [0.08, 0.5, 0.5]
  lr = lambda **model: get("rded_kl", model=model)["student"]["optimizer"]["lr"]
  assert (lr(name="vgg11"), lr(name="mobilenet_v2"), lr(name="alexnet")) == (5e-4, 2.5e-3, 1e-4)
  special = get("rded_kl", "cifar100", model=CONV3)["student"]
  assert (special["optimizer"]["lr"], special["batch_size"]) == (2e-3, 25)
  assert not get("rd3", "digits")["views"]["flip"]


def test_students_of_matching_methods_see_views_of_dsa():
  dsa = [get(name)["views"] for name in ("dsa_eval", "mtt_eval", "datm_eval")]
  assert dsa[0] == dsa[1] == dsa[2]
  assert (dsa[0]["dsa"], dsa[0]["mix"], dsa[0]["flip"]) == (dsa_lib.STRATEGY, None, False)
  dream = get("dream_eval")
  assert (dream["views"]["dsa_combined"], dream["views"]["mix_prob"]) == (True, 0.5)
  assert dream["views"]["dsa"] == "color_crop_flip_scale_rotate"
  for name in ("mtt_eval", "dream_eval"):
    assert "flip" not in get(name, "svhn_cropped")["views"]["dsa"].split("_")
  steps = {"name": "multistep", "per_epoch": True}
  assert get("mtt_eval")["student"]["schedule"] == steps | {"milestones": (0.5,), "factor": 0.1}
  assert dream["student"]["schedule"] == steps | {"milestones": (2 / 3, 5 / 6), "factor": 0.2}
  assert "dsa" not in get("dc_eval")["views"]


def test_a_recipe_of_learned_rates_has_one_for_images_without():
  config = digits_lt.get_config("preset=smoke")
  recipes.apply(config, "mtt_eval")
  plain = check.check(config)
  assert plain["student"]["optimizer"]["lr"] is None
  ctx = Context(plain)
  assert (ctx.own_lr, ctx.recipe_lr) == (True, 0.01)
  assert ctx.recipe == "mtt_eval"
  config.student.optimizer.lr = 0.1
  config.label.views.dsa = "crop"
  assert changes.sentence_of(check.check(config), 20, 10) == (
    "mtt_eval, changed: optimizer.sgd.lr None -> 0.1, "
    "views.dsa color_crop_cutout_scale_rotate -> crop"
  )


@pytest.mark.parametrize("reference", ["rd3", "edc_mse_gt:released", "rded_kl", "dream_eval"])
@pytest.mark.parametrize(("dataset", "side"), [("cifar100", 32), ("tiny", 64), ("imagenet", 224)])
def test_all_parts_of_recipes_can_be_made(reference, dataset, side):
  found = get(reference, dataset)
  part = found["student"]
  tx = optimizers.make_optimizer(part["optimizer"], part["schedule"], 100, 2.5)
  jax.eval_shape(tx.init, {"w": jax.ShapeDtypeStruct((3, 2), np.float32)})
  losses.make_soft_loss(**part["loss"])
  assert 0 <= part["hard_weight"] < 1
  assert part["ema"] is None or 0 <= part["ema"] < 1
  spec = small.SPEC._replace(image_shape=(side, side, 3), mean=(0.5,) * 3, std=(0.25,) * 3)
  rows = jax.ShapeDtypeStruct((2,), np.int32)
  images = jax.ShapeDtypeStruct((4, side, side, 3), np.uint8)
  labels_of = jax.ShapeDtypeStruct((4,), np.int32)
  views_of = views_lib.view_fn(spec, **found["views"])
  shown = jax.eval_shape(views_of, jax.random.key(0), images, labels_of, rows, rows)
  assert shown.images.shape == (2, side, side, 3)


def test_schedules_can_move_once_an_epoch():
  tx = optimizers.make_optimizer(  # without momentum a gradient of 1 moves by -lr
    {"name": "sgd", "lr": 1.0, "momentum": 0.0}, {"name": "linear", "per_epoch": True}, 10, 2.5
  )
  state, moved = tx.init(np.float32(0)), []
  for _ in range(10):
    update, state = tx.update(np.float32(1), state, np.float32(0))
    moved.append(-float(update))
  np.testing.assert_allclose(moved, np.repeat([1.0, 0.75, 0.5, 0.25], [2, 3, 2, 3]), atol=1e-6)


def test_between_published_numbers_the_nearest_by_ratio_counts():
  found = [recipes.nearest_ipc(n) for n in (1, 2, 3, 4, 10, 20, 22, 25, 50, 400)]
  assert found == [1, 1, 1, 10, 10, 10, 10, 50, 50, 50]
  assert get("rded_kl", ipc=0.5)["student"]["batch_size"] == 5  # no more than there are


@pytest.mark.parametrize(
  ("reference", "message"),
  [
    ("rd4", "unknown recipe 'rd4'. Did you mean 'rd3'"),
    ("rd3:released", "no ':released'; paper and code differ for edc_mse_gt only"),
    (
      "rded_kl",
      r"no values for the data set 'digits', only for cifar10, .*'rded_kl/cifar10', or use",
    ),
  ],
)
def test_unknown_names_are_refused(reference, message):
  with pytest.raises(LtddError, match=message):
    get(reference, "digits")


def test_a_run_says_what_it_changed():
  config = cifar10_lt.get_config()
  recipes.apply(config, "edc_mse_gt")
  plain = check.check(config)
  assert plain["student"]["recipe"] == "edc_mse_gt/cifar10"
  assert plain["label"]["num_epochs"] == 1000
  assert changes.sentence_of(plain, 100, 10) == "edc_mse_gt/cifar10"
  config.student.ema = 0.999
  config.student.loss = {"name": "kl", "temperature": 4.0}
  config.label.views.crop_scale = (0.5, 1)
  assert changes.sentence_of(check.check(config), 100, 10) == (
    "edc_mse_gt/cifar10, changed: ema 0.99 -> 0.999, loss.name mse_ce -> kl, "
    "views.crop_scale [0.08, 1.0] -> [0.5, 1]"
  )
  config.label.sources.teacher.online, config.student.hard_labels = True, False
  assert "label_epochs" not in changes.sentence_of(check.check(config), 100, 10)


def test_a_momentum_that_is_not_the_recipes_is_a_change():
  config = cifar10_lt.get_config()
  recipes.apply(config, "rded_kl")
  assert config.student.model.bn_momentum == 0.81
  assert changes.sentence_of(check.check(config), 100, 10) == "rded_kl/cifar10"
  config.student.model = {"name": "resnet18", "stem": "cifar"}
  said = changes.sentence_of(check.check(config), 100, 10)
  assert said == "rded_kl/cifar10, changed: model.bn_momentum 0.81 -> 0.9"


def test_another_data_set_can_lend_its_values():
  config = digits_lt.get_config("preset=smoke")
  recipes.apply(config, "rded_kl", dataset="cifar10")
  assert config.student.recipe == "rded_kl/cifar10"
  assert changes.sentence_of(check.check(config), 20, 10) == "rded_kl/cifar10"


def test_names_do_not_enter_fingerprints_and_values_do():
  config = check.check(digits_lt.get_config("preset=smoke"))
  named = config | {"student": config["student"] | {"recipe": "rd3"}}
  configs = [[s.config for s in graph.make_stages(Context(c))] for c in (config, named)]
  assert configs[0] == configs[1]
  assert "ltdd" not in changes.sentence_of(named, 20, 10)


def test_hard_labels_need_no_soft_ones():
  config = digits_lt.get_config("preset=smoke")
  recipes.apply(config, "hard")
  plain = check.check(config)
  kinds = {s.kind for s in graph.make_stages(Context(plain))}
  assert kinds == {"data", "teacher", "distil", "student"}  # sre2l needs teachers
  assert changes.sentence_of(plain, 20, 10) == "hard"
  config.student.hard_labels = False
  with pytest.raises(LtddError, match="no student has labels"):
    check.check(config)
