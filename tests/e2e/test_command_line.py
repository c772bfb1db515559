"""The command line: any value of a config, one line for each mistake, and nothing done in vain."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from configs import digits_lt
from ltdd_jax import pipeline
from ltdd_jax.artefacts.workdir import Workdir
from ltdd_jax.core import command_line
from ltdd_jax.core.config import diff
from ltdd_jax.core.types import LtddError
from ltdd_jax.pipeline import check, graph
from ltdd_jax.pipeline.context import Context

CONFIG = "configs/digits_lt.py:preset=smoke,calibrators=plain+adsa"


def checked(*args):
  """The config with overrides, as the program checks it."""
  config = digits_lt.get_config("preset=smoke,calibrators=plain+adsa").to_dict()
  config = check.check(command_line.override(config, [f"--config.{arg}" for arg in args]))
  check.check_with_data(Context(config))
  return config


@pytest.mark.parametrize(
  ("arg", "value"),
  [
    ("distil.batch_size=None", None),
    ("label.top_k=None", None),
    ("label.top_k=4", 4),
    ("student.ema=0.9", 0.9),
    ("teacher.optimizer.nesterov=True", True),
    ("calibrate.calibrators.adsa.criterion=nll", "nll"),
    ("label.views.padding=2", 2),
    ("label.views.crop_scale=(0.5,1)", (0.5, 1)),
    ("student.hard_labels=false", False),
    (
      "student.schedule={'name':'multistep','milestones':(0.5,),'factor':0.1}",
      {"name": "multistep", "milestones": (0.5,), "factor": 0.1},
    ),
    ("distil.methods.other={'name':'random'}", {"name": "random"}),
    ("data.splits.other.rule=as_is", "as_is"),
  ],
)
def test_any_value_can_be_given(arg, value):
  node = checked(arg)
  for key in arg.partition("=")[0].split("."):
    node = node[key]
  assert node == value
  assert type(node) is type(value)


def test_a_whole_entry_can_be_added_key_by_key(tmp_path):
  labels = np.arange(50, dtype=np.int32) % 10
  np.savez(tmp_path / "a.npz", images=np.zeros((50, 8, 8, 1), np.uint8), labels=labels)
  config = checked(
    "distil.methods.mine.name=imported", f"distil.methods.mine.path={tmp_path / 'a.npz'}"
  )
  assert config["distil"]["methods"]["mine"]["path"] == str(tmp_path / "a.npz")


def test_numbers_are_what_they_replace():
  config = {"lr": 0.1, "name": "x", "steps": 1}
  args = ["--config.lr=1", "--config.name=7", "--config.steps=2", "-config.steps=3"]
  changed = command_line.override(config, args)
  assert changed == {"lr": 1.0, "name": "7", "steps": 3}
  assert isinstance(changed["lr"], float)
  assert config == {"lr": 0.1, "name": "x", "steps": 1}


@pytest.mark.parametrize(
  ("arg", "text"),
  [
    ("student.num_epoch=3", r"unexpected key 'num_epoch'. Did you mean 'num_epochs'\? train_st"),
    ("teachr.num_epochs=3", "unexpected group 'teachr'. Did you mean 'teacher'"),
    ("label.views.crop=1", r"config\.label\.views: unexpected key 'crop'.* view_fn takes \("),
    ("label.views.crop_scale=0.5", "crop_scale is 0.5 .*expected tuple"),
    ("label.views.crop_scale=('a','b')", "crop_scale is .*expected tuple"),
    ("teacher.optimizer={'name':'sgd'}", r"config\.teacher\.optimizer: missing key 'lr'. sgd ta"),
    ("teacher.optimizer={'lr':1}", r"teacher\.optimizer: missing key 'name'; expected one of ad"),
    ("student.schedule={}", r"config\.student\.schedule: missing key 'name'; expected one of"),
    ("teacher.schedule.per_epoch=True", "unexpected key 'per_epoch'. cosine takes"),
    ("teacher.objective={}", r"config\.teacher\.objective: missing key 'name'"),
    (
      "student.schedule=smooth",
      r"schedule is 'smooth' \(str\); expected a dict .*as {'name': 'smooth'}$",
    ),
    ("student.schedule.milestones=(0.5,)", r"give the dict whole, as {'name': 'cosine'}"),
    ("student.recipe=rd3", r"changes no training; expected recipe=NAME after the config file"),
    ("student.loss={}", r"config\.student\.loss: missing key 'name'"),
    ("teacher.augment=({'padding':4},)", r"config\.teacher\.augment\.0: missing key 'name'"),
    ("teacher.augment=(5,)", r"augment is \(5,\) .*expected Sequence"),
    ("teacher.models.a.split=b", r"config\.teacher\.models\.a: missing key 'name'"),
    ("distil.methods.sre2l.augment=({'name':'rol'},)", r"sre2l\.augment\.0: unknown name 'rol'"),
    ("distil.methods.x=5", r"config\.distil\.methods\.x is 5; expected a dict of arguments"),
    ("distil.methods=5", "methods is 5 .*expected Mapping"),
    ("distil.methods={}", r"config\.distil\.methods is empty"),
    ("distil.methods.sre2k.lr=5", r"missing key 'name'; .*Did you mean 'sre2l'"),
    ("distil.methods.sre2l.num_steps=-5", "num_steps is -5; expected 1 or more"),
    ("distil.methods.sre2l.lr=-1", "lr is -1.0; expected 0 or more"),
    ("distil.methods.sre2l.r_bn=-1", "r_bn is -1.0; expected 0 or more"),
    ("teacher.optimizer.momentum=1.5", r"momentum is 1.5; expected a number in \[0, 1\)"),
    ("teacher.optimizer.lr=-1", r"config\.teacher: schedule 'cosine': lr=-1.0; expected 0 or more"),
    ("student.optimizer.lr=-1", r"config\.student: schedule 'cosine': lr=-1.0; expected 0 or more"),
    ("calibrate.max_epochs=x", "max_epochs is 'x' .*expected int"),
    ("student.hard_labels=maybe", "hard_labels is 'maybe' .*expected bool"),
    ("label.sources.teacher.teachers=5", "teachers is 5 .*expected Sequence"),
    ("teacher=None", r"config\.teacher is None; expected a dict"),
    ("seed.x=5", r"config\.seed is 0, which has no keys; give it whole"),
    ("seed", "has no value or no key; expected --config.KEY=VALUE"),
  ],
)
def test_a_mistake_is_one_line(arg, text):
  with pytest.raises(LtddError, match=text) as error:
    checked(arg)
  assert "\n" not in str(error.value)


def test_what_is_no_config_file(tmp_path):
  for name, content, text in (
    ("none.py", None, "there is no config file"),
    ("config.txt", "", "expected a .py file"),
    ("empty.py", "", "has no function get_config"),
    ("number.py", "get_config = lambda: 5", "number.py is a int; expected a dict"),
    ("list.json", "[1]", "list.json is a tuple; expected a dict"),
    ("half.json", "{", "cannot be read .*expected a JSON file with a config"),
    ("gone.json", None, "cannot be read .*expected a JSON file with a config"),
    ("numbers.py", None, r"Did you mean 'number.py'\?"),
  ):
    if content is not None:
      (tmp_path / name).write_text(content)
    with pytest.raises(LtddError, match=text):
      command_line.read_config(str(tmp_path / name))
  assert command_line.read_config(CONFIG)["seed"] == 0


def test_the_config_of_a_run_can_be_given_again(tmp_path):
  config = digits_lt.get_config("preset=smoke").to_dict()
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert command_line.read_config(str(tmp_path / "config.json")) == config


def test_only_what_is_to_be_made_is_traced(tmp_path, monkeypatch):
  traced = []
  trace = check._check_method
  monkeypatch.setattr(check, "_check_method", lambda ctx, x: traced.append(x) or trace(ctx, x))
  config = digits_lt.get_config("preset=smoke,calibrators=plain")
  pipeline.run(config, tmp_path, dry_run=True)
  assert traced == ["random", "sre2l"]
  traced.clear()
  pipeline.run(config, tmp_path, dry_run=True, stage="only:teacher")
  assert not traced
  with Workdir(tmp_path / "first", cache=tmp_path / "cache") as work:
    for stage in graph.make_stages(Context(check.check(config))):
      if "sre2l" not in stage.name:
        work.commit(stage.name, config=stage.config, inputs=stage.inputs, arrays={})
  pipeline.run(config, tmp_path / "first", dry_run=True)
  pipeline.run(config, tmp_path / "second", cache=tmp_path / "cache", dry_run=True)
  assert traced == ["sre2l", "sre2l"]


def test_what_another_config_made_is_named_at_once(tmp_path):
  config = digits_lt.get_config("preset=smoke,calibrators=plain+adsa+probe")
  with Workdir(tmp_path) as work:
    for stage in graph.make_stages(Context(check.check(config))):
      work.commit(stage.name, config=stage.config, inputs=stage.inputs, arrays={})
  config.student.num_epochs -= 1
  with pytest.raises(LtddError, match=r"num_epochs: 3 -> 2 \(probe, student\)\nUse") as error:
    pipeline.run(config, tmp_path, dry_run=True)
  for folder in str(error.value).partition("made so: ")[2].split():
    shutil.rmtree(folder)
  pipeline.run(config, tmp_path, dry_run=True)


def test_the_defaults_of_a_config_file(tmp_path):
  defaults = command_line.read_defaults(CONFIG)
  changed = diff(defaults, command_line.read_config("configs/digits_lt.py:ipc=7"))
  assert changed["distil.images_per_class"] == (defaults["distil"]["images_per_class"], 7)
  file = tmp_path / "config.py"
  file.write_text("def get_config(arg):\n  return {'data': arg}\n")
  assert command_line.read_config(f"{file}:a") == {"data": "a"}
  assert command_line.read_defaults(f"{file}:a") is None
  assert command_line.read_defaults("configs/folder_lt.py:path=images") is None


def test_a_home_folder_is_not_a_folder_of_that_name(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  work = Workdir("~/runs", cache="~/cache")
  assert (str(work.path), str(work.cache)) == (f"{tmp_path}/runs", f"{tmp_path}/cache")
  with pytest.raises(LtddError, match=str(tmp_path)):
    command_line.read_config("~/config.py")


def program(*args, name="main"):
  return subprocess.run(
    [sys.executable, "-m", f"launch.{name}", *args], capture_output=True, text=True, check=False
  )


def test_the_program_says_one_line(tmp_path):
  both = ("--config", CONFIG, "--workdir", str(tmp_path / "w"), "--dry_run")
  bad = program(*both, "--config.label.views.crop=1", "--compile_cache=")
  assert bad.returncode == 2
  assert bad.stderr.splitlines()[-1].startswith("error: config.label.views: unexpected key 'crop'")
  assert "Traceback" not in bad.stderr
  store = program(*both, "--compile_cache=ftp://host/cache")
  assert store.returncode == 2
  assert store.stderr.startswith("error: path ftp://host/cache: expected a local path")


@pytest.mark.parametrize(
  ("flag", "text"),
  [
    ("x", "unexpected 'x'; values are given as --config.KEY=VALUE"),
    ("--workdir=", "--config and --workdir are needed"),
    ("--tua=1", "Unknown command line flag 'tua'"),
    ("--cpu_devices=0", "cpu_devices is 0; expected 1 or more"),
    ("--checkpoint_seconds=-1", "checkpoint_seconds is -1.0; expected 0 or more"),
    ("--cache=", "a path is empty; expected the name of a file or folder"),
    ("--distributed", "coordinator_address should be defined"),
    ("--stage=distill", "Did you mean 'distil'?"),
  ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, flag, text):
  done = program("--config", CONFIG, f"--workdir={tmp_path}", "--dry_run", flag)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith("error: ")
  assert text in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  ("args", "text"),
  [
    ("runs/a", "--images or --set is needed"),
    ("runs/a runs/b --images=edc", "unexpected 'runs/b'; expected one work directory"),
    ("--images=edc", "expected the work directory of a run, or --config and --workdir"),
    (f"runs/a --images=edc --config={CONFIG}", "expected the work directory of a run, or"),
    (f"--set=a.npz --config={CONFIG}", "--workdir is needed with --config"),
    ("nowhere --images=edc", "nowhere is no work directory of a run: there is no config.json"),
    (
      f"--set=nothing.npz --config={CONFIG} --workdir=nowhere --config.student.num_seeds=1",
      "config.distil.methods.set: nothing.npz: there is no such file",
    ),
  ],
)
def test_wrong_arguments_of_score_are_one_line(args, text):
  done = program(*args.split(), name="score")
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith("error: ")
  assert text in done.stderr
  assert "Traceback" not in done.stderr
  assert not pathlib.Path("nowhere").exists()


@pytest.mark.parametrize("name", ["main", "calibrate", "sweep"])
@pytest.mark.parametrize("stop", ["os.kill(os.getpid(), signal.SIGTERM)", "Garbage()"])
def test_a_stop_at_any_time_is_one_line(name, stop):
  """Also one that falls into a callback of the garbage collector."""
  code = f"""
import os, signal, time
from launch import {name}
class Garbage:
  def __del__(self):
    raise KeyboardInterrupt
{stop}
time.sleep(60)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.stderr == "error: stopped before the end; no file is half written.\n"
  assert done.returncode == 130


def test_help_does_not_import_jax():
  code = "import sys; from launch import main; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
