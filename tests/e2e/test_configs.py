"""Every config: all its parts can be made, in every preset, and the smoke preset runs."""

import functools
import importlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from configs import methods, teachers
from ltdd_jax import pipeline
from ltdd_jax.core import config as config_lib
from ltdd_jax.core.types import LtddError
from ltdd_jax.data import sources, specs
from ltdd_jax.pipeline import check, graph, plan
from ltdd_jax.pipeline.context import Context

NAMES = ("digits_lt", "cifar10_lt", "cifar100_lt", "fashion_mnist_lt", "folder_lt")
NAMES += (AT_64 := ("tiny_imagenet_lt", "caltech101_lt"))


def get_config(name, arg):
  if name == "folder_lt":
    arg = f"path=somewhere,{arg}"
  if name in AT_64:
    arg = f"data=folder:somewhere,{arg}"
  return importlib.import_module(f"configs.{name}").get_config(arg)


def few_labels(config):
  """Keeps one calibrator: each has students, which take most of the time."""
  config.calibrate.calibrators = {"adsa": config.calibrate.calibrators.to_dict()["adsa"]}
  return config


def synthetic(name, per_class, **_):
  """A source with the facts of a real set and noise for images."""
  spec = specs.SPECS["cifar10" if name.startswith("folder") else name]
  k = spec.num_classes
  train = np.repeat(np.arange(k, dtype=np.int32), per_class)
  test = np.tile(np.arange(k, dtype=np.int32), 20)

  def read(split, indices):
    del split
    noise = np.random.RandomState(len(indices)).randint(0, 256, (len(indices), *spec.image_shape))
    return noise.astype(np.uint8)

  return sources.DataSource(
    spec=spec,
    train_labels=train,
    test_labels=test,
    read=read,
    class_names=tuple(map(str, range(k))),
  )


@pytest.fixture
def small_source(monkeypatch):
  monkeypatch.setattr(sources, "open_source", lambda name, **kw: synthetic(name, 12, **kw))


@pytest.fixture
def real_size_source(monkeypatch):
  def make(name, **kwargs):
    spec = specs.SPECS["cifar10" if name.startswith("folder") else name]
    return synthetic(name, spec.num_train // spec.num_classes, **kwargs)

  monkeypatch.setattr(sources, "open_source", make)


@pytest.mark.parametrize("preset", ["smoke", "cpu", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_every_config_can_be_made(name, preset, real_size_source):
  config = check.check(get_config(name, f"preset={preset}"))
  ctx = Context(config)
  check.check_with_data(ctx)
  for model in ctx.networks.values():
    image = jax.ShapeDtypeStruct((2, *ctx.source.spec.image_shape), np.float32)
    apply = functools.partial(model.apply, train=False)
    logits = jax.eval_shape(apply, ctx.variable_shapes(model), image)
    assert logits.shape == (2, ctx.source.spec.num_classes)
  for stage in graph.make_stages(ctx):
    assert stage.plan(ctx)


def test_presets_keep_the_split(real_size_source):
  counts = {
    preset: Context(check.check(get_config("cifar10_lt", f"preset={preset}"))).counts
    for preset in ("smoke", "cpu", "full")
  }
  assert sum(counts["full"]) == 12406
  for other in counts.values():
    np.testing.assert_array_equal(other, counts["full"])


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_has_its_settings(method, real_size_source):
  for dataset in ("cifar10", "cifar100"):
    config = check.check(get_config(f"{dataset}_lt", f"method={method}"))
    assert config["distil"]["methods"][method]["name"] == method
    assert config["student"]["recipe"]
  small = check.check(get_config("digits_lt", f"method={method},recipe=rd3"))
  check.check_with_data(Context(small))


def test_smoke_makes_few_images_unless_told_otherwise():
  study = importlib.import_module("configs.bound").get_config
  for get in (functools.partial(get_config, "digits_lt"), study):
    for arg, ipc in (("", 2), (",ipc=3", 3), (",ipc=1", 1)):
      assert get(f"preset=smoke{arg}").distil.images_per_class == ipc


def test_edc_has_eight_networks_and_all_images_in_a_batch():
  config = get_config("cifar10_lt", "method=edc,ipc=50")
  assert len(config.teacher.models) == 8
  assert config.distil.batch_size is None
  assert config.distil.order == "class_major"
  assert config.student.recipe == "edc_mse_gt/cifar10"


def test_edc_released_follows_the_scripts():
  config = get_config("cifar10_lt", "method=edc_released")
  assert config.distil.methods.edc_released.target_batch == 64
  assert (config.teacher.num_epochs, config.student.recipe) == (5, "edc_mse_gt/cifar10:released")


def test_rldd_has_debiased_recalibrated_teachers_of_any_size():
  config = get_config("cifar100_lt", "method=rldd")
  assert (set(config.teacher.models), config.distil.teachers) == (
    {"observer", "labeler"}, ("observer",)
  )  # fmt: skip
  assert config.label.sources.teacher.teachers == ("labeler",)
  assert config.student.num_seeds == 5
  for preset in ("cpu", "smoke"):
    config = get_config("cifar10_lt", f"method=rldd,preset={preset},ipc=20")
    assert config.distil.batch_size == 100
    assert (config.teacher.objective.to_dict(), config.teacher.views) == (
      {"name": "rldd"},
      2,
    )
    assert config.teacher.derive[0]["name"] == "recalibrate_bn_by_class"
    assert config.student.num_seeds == {"cpu": 3, "smoke": 2}[preset]


@pytest.mark.parametrize("without", ["nothing", "debiasing", "recalibration", "initialisation"])
def test_ablation_of_rldd(without, real_size_source):
  config = check.check(get_config("rldd_ablation", f"without={without}"))
  teacher, ((name, method),) = config["teacher"], config["distil"]["methods"].items()
  assert name == ("rldd" if without == "nothing" else f"rldd_without_{without}")
  gone = {
    "debiasing": teacher["objective"]["name"] == "cross_entropy" and teacher["views"] == 1,
    "recalibration": not teacher["derive"],
    "initialisation": method["init"] == "real",
  }
  assert [name for name, is_gone in gone.items() if is_gone] == [without] * (without != "nothing")


def test_every_argument_of_a_method_can_be_changed():
  edc = get_config("cifar10_lt", "method=edc").distil.methods.edc
  assert (edc.flatness, edc.ema_init, edc.alpha) == (0.25, "zero", 0.5)


@pytest.mark.parametrize("teacher", teachers.TEACHERS)
def test_teachers_by_name(teacher, real_size_source):
  """After any preset and method; nothing but the teacher moves, and its splits stay."""
  method = "method=edc," if teacher == "four_convnets" else ""  # two have no batch norm for SRe2L
  for arg in (f"{method}preset=cpu", "method=edc", f"{method}preset=smoke"):
    plain = get_config("cifar10_lt", arg).to_dict()
    named = get_config("cifar10_lt", f"{arg},teacher={teacher}").to_dict()
    assert named["teacher"].keys() == plain["teacher"].keys()
    check.check_with_data(Context(check.check(named)))
    for config in (plain, named):
      del config["teacher"], config["distil"]["teachers"]
    assert config_lib.diff(plain, named) == {}
  cross = importlib.import_module("configs.perturbation").get_config
  crossed = cross(f"dataset=cifar10,teacher={teacher}").teacher
  assert set(crossed.splits) < set(crossed.models)


def test_statistics_that_a_network_has_not_are_refused_before_it_is_trained(real_size_source):
  config = get_config("cifar10_lt", "method=rldd,preset=cpu")
  config.teacher.models.teacher.norm = "instance"  # the public copy's
  with pytest.raises(LtddError, match="'recalibrate_bn_by_class' needs a network with batch norm"):
    check.check_with_data(Context(check.check(config)))


def test_the_preset_cpu_has_the_teacher_convnet():
  named, plain = (get_config("cifar10_lt", f"preset=cpu{t}") for t in (",teacher=convnet", ""))
  assert config_lib.diff(plain.teacher, named.teacher) == {}


def test_a_teacher_must_be_known_and_fit_the_images():
  with pytest.raises(LtddError, match=r"teacher is 'fast95'; expected one of 'fast94', 'fast96'"):
    get_config("cifar10_lt", "teacher=fast95")
  digits = check.check(get_config("digits_lt", "teacher=fast94"))
  with pytest.raises(LtddError, match=r"airbench: images of shape \(8, 8, 1\) are too small"):
    check.check_with_data(Context(digits))


@pytest.mark.parametrize("teacher", ["convnet", "rldd"])
def test_digits_are_never_mirrored(teacher):
  for method in ("edc", "edc_released", "rldd"):
    config = get_config("digits_lt", f"method={method},teacher={teacher}")
    assert "random_flip" not in str([config.teacher.augment, config.distil.methods[method].augment])
    start = config.distil.methods[method].init
    assert start == "crops" or start.to_dict() == {"name": "real", "flip": False}


def test_calibrators_by_name():
  config = get_config("cifar10_lt", "calibrators=plain+tau075+vector_scaling")
  assert config.calibrate.calibrators.to_dict() == {
    "plain": {"name": "none"},
    "tau075": {"name": "fixed", "tau": 0.75},
    "vector_scaling": {"name": "vector_scaling"},
  }


def test_gvbsm_goes_as_far_in_few_steps_as_sre2l():
  get = lambda arg: get_config("cifar10_lt", f"method=gvbsm,{arg}").distil.methods.gvbsm
  assert (get("preset=cpu").lr, get("preset=cpu").num_steps) == (0.25, 300)
  assert (get("preset=full").lr, get("preset=full").num_steps) == (0.05, 4000)


def test_a_recipe_stays_when_the_data_set_is_changed(real_size_source):
  config = get_config("cifar10_lt", "method=sre2l")
  config.data.name = "fashion_mnist"  # by hand: it has no values of its own
  check.check_with_data(Context(check.check(config)))
  assert config.student.recipe == "sre2l_kl/cifar10"
  named = get_config("folder_lt", "recipe=edc_mse_gt/cifar100,preset=full").student
  assert (named.recipe, named.batch_size) == ("edc_mse_gt/cifar100", 50)
  study = importlib.import_module("configs.perturbation").get_config("recipe=rd3")
  assert study.student.recipe == "rd3"


@pytest.mark.parametrize(
  ("name", "arg"), [("cifar10_lt", "method=edc,recipe=rd3"), ("fashion_mnist_lt", "method=rded")]
)
def test_smoke_runs(name, arg, small_source, tmp_path):
  config = few_labels(get_config(name, f"preset=smoke,imbalance=4,{arg}"))
  config.data.num_test = 20
  results = pipeline.run(config, tmp_path, show_progress=False)
  assert len(results["rows"]) == 2 * 2  # image sources, labels
  assert (tmp_path / "report" / "report.md").exists()


def test_a_config_for_64_pixels_runs(tmp_path):
  rng = np.random.RandomState(0)
  arrays = {}
  for split, counts in (("train", (40, 12, 4)), ("test", (3, 3, 3))):
    y = np.repeat(np.arange(3), counts)
    arrays |= {f"x_{split}": rng.randint(0, 256, (len(y), 64, 64, 3)).astype(np.uint8)}
    arrays |= {f"y_{split}": y}
  np.savez(tmp_path / "images.npz", **arrays)
  arg = f"data=npz:{tmp_path / 'images.npz'},preset=smoke,method=random,calibrators=plain"
  config = importlib.import_module("configs.caltech101_lt").get_config(arg)
  config.data.num_test = None
  results = pipeline.run(config, tmp_path / "run", show_progress=False)
  assert (results["split"]["counts"], results["split"]["rule"]) == ([40, 12, 4], "as_is")


@pytest.mark.parametrize("name", AT_64)
def test_configs_for_64_pixels_have_a_fourth_stage(name):
  edc = get_config(name, "method=edc").teacher.models
  depths = {key: edc[key].depth for key in edc if key.startswith("convnet")}
  few = {"convnet_w128": 4}
  many = few | {"convnet_d1": 1, "convnet_d2": 2, "convnet_w32": 4}
  assert depths == (few if name == "tiny_imagenet_lt" else many)
  small = get_config(name, "preset=cpu")
  assert (small.student.model.depth, small.teacher.models.teacher.depth) == (4, 4)
  assert get_config(name, "method=dm").distil.methods.dm.network.depth == 4
  with pytest.raises(LtddError, match=r"data is empty: .*data=npz:FILE"):
    importlib.import_module(f"configs.{name}").get_config("preset=cpu")


def test_tiny_imagenet_has_its_own_recipes_and_counts():
  get = functools.partial(get_config, "tiny_imagenet_lt")
  assert get("method=edc_released").student.recipe == "edc_mse_gt/tiny:released"
  teacher = get("method=edc").teacher
  assert (len(teacher.models), teacher.num_epochs, teacher.batch_size) == (5, 50, 128)
  assert (teacher.optimizer.lr, teacher.schedule.name) == (0.1, "cosine")
  for method in ("edc", "ncfm"):  # an eighth of the side
    assert get(f"method={method}").teacher.augment[0]["padding"] == 8
  assert get("method=edc_released").teacher.num_epochs == 50
  assert get("recipe=edc_mse_gt/cifar100").student.recipe == "edc_mse_gt/cifar100"
  assert get("recipe=rd3,preset=cpu").student.recipe == "rd3"
  data = get("imbalance=50").data
  assert (data.rule, data.imbalance_factor) == ("counts", 1.0)
  assert (len(data.counts), data.counts[0], data.counts[-1]) == (200, 500, 10)


def test_folder_with_everything_unequal(tmp_path):
  """Real files, unequal classes, three teachers: images of one, labels of two on line, slots
  by hand, a class untested."""
  rng = np.random.RandomState(0)
  for split, counts in (("train", (120, 30, 1)), ("test", (4, 2, 0))):
    for name, count in zip(("ant", "bee", "cow"), counts, strict=True):
      folder = tmp_path / "images" / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        size = (rng.randint(20, 40), rng.randint(20, 40), 3)
        Image.fromarray(rng.randint(0, 256, size).astype(np.uint8)).save(folder / f"{i}.png")
  config = importlib.import_module("configs.folder_lt").get_config(
    f"path={tmp_path / 'images'},size=16,preset=smoke"
  )
  config = few_labels(config)
  config.data.num_test = None
  for model in (config.teacher.models.teacher, config.student.model):
    model.update(depth=1, width=4)
  for key in ("second", "third"):
    config.teacher.models[key] = dict(config.teacher.models.teacher)
  config.distil.teachers = ("second",)
  source = config.label.sources.teacher
  source.update(teachers=("third", "teacher"), aggregate="norm_equalised", online=True)
  config.distil.slots_per_class = (3, 2, 2)
  config.report.groups = "counts(100,20)"
  results = pipeline.run(config, tmp_path / "run", show_progress=False)
  assert results["split"]["counts"] == [120, 30, 1]
  assert results["split"]["rule"] == "as_is"
  assert results["test_counts"] == [4, 2, 0]
  assert len(results["teachers"]) == 3
  for row in results["rows"]:
    assert row["images_per_class"] == [3, 2, 2]
    assert row["per_class"][2] is None
    assert row["groups"]["head"]["classes"] == [0]
    assert "tail" not in row["groups"]
  assert any("cow: 2 slots" in n or "class 2: 2 slots" in n for n in results["notes"])
  text = (tmp_path / "run" / "report" / "report.md").read_text()
  assert "not balanced" in text
  assert text.count("| top-1 of 2 of 3 classes |") == 2
  assert re.search(r"\| +data \|.*\| +run \|", text)


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("methd=random", "Did you mean 'method'"),
    ("method=sre2", r"method is 'sre2'; expected one of .* Did you mean 'sre2l'\?"),
    ("recipe=SRe2L_KL", r"unknown recipe 'SRe2L_KL'. Did you mean 'sre2l_kl'\?"),
    ("ipc=many", "ipc"),
    ("preset=smok", r"preset is 'smok'; expected .* Did you mean 'smoke'\?"),
    ("calibrators=plain+asda", "'asda' is unknown; expected few, all, priors, or names"),
  ],
)
def test_bad_arguments_are_refused(arg, message):
  with pytest.raises(LtddError, match=message):
    get_config("cifar10_lt", arg)


def test_folder_config_wants_a_path():
  with pytest.raises(LtddError, match="path is empty"):
    importlib.import_module("configs.folder_lt").get_config("preset=cpu")


def test_plan_says_steps_and_parameters(real_size_source):
  config = check.check(get_config("cifar10_lt", "preset=full"))
  ctx = Context(config)
  assert "11,173,962 parameters" in plan.teacher(ctx)
  ctx.source = ctx.source._replace(notes=("test: skipped 1",))
  assert "12,406 of 50,000" in plan.data(ctx)
  assert "\n  test: skipped 1" in plan.data(ctx)
