"""Artefacts: whole or not there, checked on opening, one process at a time."""

import concurrent.futures
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.artefacts import checkpoint, manifest, provenance
from ltdd_jax.artefacts import workdir as workdir_lib
from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError

CONFIG = {"seed": 0, "teacher": {"lr": 0.1, "views": [1, 2]}}
ROOT = str(pathlib.Path(workdir_lib.__file__).parents[2])


def commit(work, stage="teacher", config=CONFIG, inputs=None, **kwargs):
  kwargs = {"arrays": {"x": np.arange(6.0).reshape(2, 3)}, "class_names": ["a", "b"]} | kwargs
  return work.commit(stage, config=config, inputs=inputs or {}, **kwargs)


@pytest.fixture
def work(tmp_path):
  with workdir_lib.Workdir(tmp_path / "run") as work:
    yield work


def leftovers(path):
  return list(pathlib.Path(path).rglob(f"{files.TEMPORARY}*"))


# ---- fingerprints ----


def test_fingerprint_is_a_fixed_function():
  """Recorded once; a change would make every artefact on disk another one."""
  assert workdir_lib.fingerprint({"a": 1, "b": [0.1, None]}, {"data": "x"}) == (
    "0d52818c3f03df721e1ed728f175b90a20ef4f72f460caf5074de9822b8d2193"
  )


def test_fingerprint_of_equal_configs():
  config = {"lr": np.float64(0.1), "n": np.int32(3), "views": (1, 2), "b": np.bool_(True)}
  same = {"b": True, "views": [1, 2], "n": 3, "lr": 0.1}
  assert workdir_lib.fingerprint(config, {}) == workdir_lib.fingerprint(same, {})


def test_fingerprint_tells_configs_inputs_and_types_apart():
  seen = [
    workdir_lib.fingerprint(*args)
    for args in (({}, {}), ({"a": 1}, {}), ({}, {"a": "1"}), ({"a": 1.0}, {}), ({"a": True}, {}),
                 ({"a": "1"}, {}), ({"a": None}, {}), ({"a": [1]}, {}))
  ]  # fmt: skip
  assert len(set(seen)) == len(seen)


def test_fingerprint_refuses_nan():
  with pytest.raises(LtddError, match=r"config\.config\.lr is nan"):
    workdir_lib.fingerprint({"lr": float("nan")}, {})


# ---- commit, status, load ----


def test_commit_and_load(work):
  tree = {"params": {"w": jnp.ones((2, 3), jnp.bfloat16), "e": {}}, "batch_stats": {}}
  made = commit(
    work,
    stage="distil/sre2l",
    arrays={"x": np.arange(3, dtype=np.int64), "h": jnp.full((2, 2), 0.5, jnp.bfloat16)},
    trees={"net": tree},
    extra={"notes": ["n"], "counts": (3, 1)},
    split_sha256="abc",
    seconds=1.5,
    peak_bytes=10,
  )
  for artefact in (made, workdir_lib.Workdir(work.path).load("distil/sre2l")):
    assert artefact.path == work.path / "distil" / "sre2l"
    assert artefact.meta["stage"] == "distil/sre2l"
    assert artefact.meta["config"] == CONFIG
    assert artefact.meta["fingerprint"] == workdir_lib.fingerprint(CONFIG, {})
    assert artefact.meta["class_names"] == ["a", "b"]
    assert artefact.meta["extra"] == {"notes": ["n"], "counts": [3, 1]}
    assert (artefact.meta["split_sha256"], artefact.meta["seconds"]) == ("abc", 1.5)
    assert artefact.meta["peak_bytes"] == 10
    assert artefact.meta["versions"]["jax"] == jax.__version__
    assert sorted(artefact.arrays) == ["h", "x"]
    assert len(artefact.arrays) == 2
    np.testing.assert_array_equal(artefact.arrays["x"], np.arange(3))
    assert artefact.arrays["h"].dtype == jnp.bfloat16
    assert artefact.arrays["h"].astype(np.float32).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    back = artefact.tree("net")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert back["params"]["w"].dtype == jnp.bfloat16
    assert isinstance(back["params"]["w"], np.ndarray)
  assert leftovers(work.path) == []


def test_large_arrays_are_mapped(work, monkeypatch):
  monkeypatch.setattr(manifest, "_MMAP_BYTES", 100)
  array = commit(work).arrays["x"]
  assert isinstance(array, np.memmap)
  np.testing.assert_array_equal(array, np.arange(6.0).reshape(2, 3))


def test_status(work):
  assert work.status("teacher", CONFIG, {}) == "missing"
  assert not work.exists("teacher")
  commit(work)
  assert work.exists("teacher")
  assert work.status("teacher", CONFIG, {}) == "ready"
  assert work.status("teacher", {**CONFIG, "teacher": {"views": (1, 2), "lr": 0.1}}, {}) == "ready"


def test_another_config_is_shown_with_what_to_delete(work):
  a = commit(work)
  b = commit(work, "distil/x", inputs={"teacher": a.meta["fingerprint"]})
  commit(work, "label/x", inputs={"distil/x": b.meta["fingerprint"]})
  commit(work, "label/y", inputs={"distil/x": b.meta["fingerprint"]})
  commit(work, "distil/other")
  commit(work, "data")
  new = {"seed": 0, "teacher": {"lr": 0.2, "views": [1, 2], "wd": None}}
  with pytest.raises(LtddError) as error:
    work.status("teacher", new, {})
  run = work.path
  assert str(error.value) == (
    f"{run} has artefacts that were made with another config:\n"
    "  teacher.lr: 0.1 -> 0.2 (teacher)\n"
    "  teacher.wd: (absent) -> null (teacher)\n"
    "Use another --workdir, or delete all that was made so: "
    f"{run}/distil/x {run}/label {run}/teacher"
  )
  with pytest.raises(LtddError, match="made with another config"):
    commit(work, config=new)


def test_all_that_differs_is_shown_at_once(work):
  a = commit(work)
  b = commit(work, "distil/x", inputs={"teacher": a.meta["fingerprint"]})
  for name in ("label/x", "label/y"):
    commit(work, name, inputs={"distil/x": b.meta["fingerprint"]})
  new = CONFIG | {"seed": 1}
  wanted = [("teacher", new, {}), ("distil/x", CONFIG, {"teacher": "1"}), ("missing", new, {})]
  wanted += [(name, new, {"distil/x": "2"}) for name in ("label/x", "label/y")]
  with pytest.raises(LtddError) as error:
    work.check(wanted)
  assert str(error.value) == (
    f"{work.path} has artefacts that were made with another config:\n"
    "  seed: 0 -> 1 (label, teacher)\n"
    "Use another --workdir, or delete all that was made so: "
    f"{work.path}/distil {work.path}/label {work.path}/teacher"
  )


def test_another_version_of_the_code_is_another_artefact(work, tmp_path):
  """Else a shared cache would serve what older code made."""
  old, new = (CONFIG | {"version": {"teacher": number}} for number in (1, 2))
  work.cache = files.path(tmp_path / "cache")
  commit(work, config=old)
  assert work.status("teacher", old, {}) == "ready"
  for ask in (work.status, functools.partial(commit, work)):
    with pytest.raises(LtddError, match=r"other results:\n  version.teacher: 1 -> 2 \(te"):
      ask("teacher", new, {})
  with workdir_lib.Workdir(tmp_path / "other", work.cache) as other:
    assert other.status("teacher", new, {}) == "missing"
    assert other.status("teacher", old, {}) == "ready"
  assert work.scratch("teacher", old, {}) != work.scratch("teacher", new, {})


def test_another_input_is_named(work):
  commit(work, "distil/x", inputs={"teacher": "1" * 64, "data": "2" * 64})
  with pytest.raises(LtddError) as error:
    work.status("distil/x", CONFIG, {"teacher": "3" * 64, "data": "2" * 64})
  text = str(error.value)
  assert "were made from other inputs" in text
  assert "input teacher: 111111111111 -> 333333333333 (distil)" in text
  assert "data" not in text
  assert text.endswith(f" {work.path}/distil")


def test_other_versions_of_jax_are_only_noted(work, caplog, monkeypatch):
  commit(work)
  monkeypatch.setattr(provenance, "versions", lambda: {"jax": "9.9", "jaxlib": "9.9"})
  with caplog.at_level("INFO", logger="absl"):
    assert work.status("teacher", CONFIG, {}) == "ready"
  assert f"teacher: made with jax {jax.__version__} (now 9.9)" in caplog.text


def test_committing_twice_keeps_the_first(work):
  commit(work, seconds=1.0)
  assert commit(work, seconds=2.0).meta["seconds"] == 1.0


def test_a_missing_artefact(work):
  with pytest.raises(LtddError, match="no artefact of stage 'teacher'; run that stage first"):
    work.load("teacher")


def test_an_unknown_tree(work):
  with pytest.raises(LtddError, match=r"has no tree 'b'; it has \[\]"):
    commit(work).tree("b")


def test_a_folder_without_a_manifest_is_refused(work):
  (work.path / "teacher").mkdir()
  assert work.status("teacher", CONFIG, {}) == "missing"
  (work.path / "teacher" / "x.npy").write_text("mine")
  with pytest.raises(LtddError, match=r"teacher has files but no meta\.json"):
    work.status("teacher", CONFIG, {})


@pytest.mark.parametrize("stage", ["../x", "a//b", ".hidden", "a b", "", "/abs"])
def test_stage_names(work, stage):
  with pytest.raises(LtddError, match="stage name"):
    work.status(stage, {}, {})


@pytest.mark.parametrize(
  ("kwargs", "text"),
  [
    ({"arrays": {"x": np.array([object()])}}, "array 'x' has dtype object"),
    ({"arrays": {"x": np.zeros(2, [("a", "i4")])}}, "array 'x' has dtype"),
    ({"arrays": {"../x": np.zeros(2)}}, r"array name '\.\./x'"),
    ({"trees": {"a b": {"w": np.zeros(2)}}}, "tree name 'a b'"),
    ({"extra": {"tau": float("nan")}}, r"meta\.extra\.tau is nan"),
  ],
)
def test_what_cannot_be_stored(work, kwargs, text):
  with pytest.raises(LtddError, match=text):
    commit(work, **kwargs)
  assert not work.exists("teacher")
  assert leftovers(work.path) == []


def test_writing_needs_the_lock(tmp_path):
  with pytest.raises(LtddError, match="is not open; use 'with Workdir"):
    commit(workdir_lib.Workdir(tmp_path))


def test_asking_without_the_lock_changes_nothing(tmp_path):
  assert workdir_lib.Workdir(tmp_path / "none").status("teacher", CONFIG, {}) == "missing"
  assert not (tmp_path / "none").exists()


# ---- damage ----


def truncate(path):
  with open(path, "r+b") as file:
    file.truncate(path.stat().st_size // 2)


def alter(path):
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(bytes(data))


def rewrite_meta(path):
  meta = json.loads(path.read_text())
  meta["seconds"] = 0.5
  path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
  ("name", "harm", "text"),
  [
    ("x.npy", truncate, r"x\.npy is damaged: it has \d+ bytes, expected \d+"),
    ("x.npy", alter, r"x\.npy is damaged: its content was altered"),
    ("x.npy", pathlib.Path.unlink, r"x\.npy is damaged: it is missing"),
    ("trees/net/_METADATA", alter, r"_METADATA is damaged: its content was altered"),
    ("meta.json", truncate, r"meta\.json is damaged: it was truncated or altered"),
    ("meta.json", rewrite_meta, r"meta\.json is damaged: it was truncated or altered"),
  ],
)
def test_damage_is_named(work, name, harm, text):
  folder = commit(work, trees={"net": {"w": np.ones(3)}}).path
  harm(pathlib.Path(folder) / name)
  with pytest.raises(LtddError, match=text + f".*Delete {folder} and"):
    workdir_lib.Workdir(work.path).load("teacher")


# ---- full disks and killed runs ----


def test_a_full_disk_leaves_nothing_half_written(work, monkeypatch):
  commit(work, "data")

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as m:
    m.setattr(np, "save", full)
    with pytest.raises(
      LtddError, match=r"stage teacher needs 4\.\d+ kB and cannot be written: the d"
    ):
      commit(work)
  assert leftovers(work.path) == []
  assert work.status("teacher", CONFIG, {}) == "missing"
  work.load("data")
  commit(work)


def test_too_little_space_is_seen_before_writing(work, monkeypatch):
  usage = type("usage", (), {"free": 10})
  monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(LtddError, match=r"stage teacher needs .* has 10 bytes free"):
    commit(work)


def test_other_errors_of_the_disk_are_explained(work, monkeypatch):
  def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(os, "rename", refuse)
  with pytest.raises(
    LtddError, match=r"stage teacher: could not be written in .*Permission denied"
  ):
    commit(work)
  assert leftovers(work.path) == []


def test_a_failed_write_keeps_the_old_text(tmp_path, monkeypatch):
  files.write_text(tmp_path / "a" / "x.txt", "old")

  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(LtddError, match=r"x\.txt needs 3 bytes and cannot be written"):
    files.write_text(tmp_path / "a" / "x.txt", "new")
  assert [p.read_text() for p in (tmp_path / "a").iterdir()] == ["old"]


def test_leftovers_are_swept_under_the_lock_only(tmp_path):
  for name in ("report", f"{files.TEMPORARY}1-ab/trees", "teacher"):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / "report" / f"{files.TEMPORARY}xyz").write_text("half")
  (tmp_path / "teacher" / "mine.txt").write_text("kept")
  workdir_lib.Workdir(tmp_path).exists("teacher")
  assert len(leftovers(tmp_path)) == 2
  with workdir_lib.Workdir(tmp_path):
    assert leftovers(tmp_path) == []
  assert (tmp_path / "teacher" / "mine.txt").exists()


def test_what_another_work_directory_writes_is_not_swept(tmp_path):
  with workdir_lib.Workdir(tmp_path / "inner"):
    half = tmp_path / "inner" / f"{files.TEMPORARY}xyz"
    half.write_text("half")
    with workdir_lib.Workdir(tmp_path):
      assert half.exists()


def test_a_folder_of_other_files_is_refused_before_work(tmp_path):
  (tmp_path / "teacher" / "old").mkdir(parents=True)
  (tmp_path / "teacher" / "old" / "w.bin").write_text("mine")
  with pytest.raises(LtddError, match=r"teacher has files but no .*: it is no artefact"):
    workdir_lib.Workdir(tmp_path).status("teacher", CONFIG, {})


def test_scratch_is_kept_by_config_and_gone_after_commit(work):
  folder = work.scratch("teacher", CONFIG, {})
  (folder / "checkpoint").write_text("1")
  assert work.scratch("teacher", CONFIG, {}) == folder
  assert (folder / "checkpoint").exists()
  other = work.scratch("teacher", CONFIG | {"seed": 1}, {})
  assert other != folder
  assert work.scratch("teacher", CONFIG, {"data": "1"}) not in (folder, other)
  assert (folder / "checkpoint").exists()
  kept = work.scratch("distil/t", CONFIG, {})
  commit(work)
  assert not folder.exists()
  assert not other.exists()
  assert kept.exists()


# ---- the lock ----


def test_a_second_workdir_is_refused(work):
  with (
    pytest.raises(LtddError, match=f"{work.path} is in use by process {os.getpid()} on "),
    workdir_lib.Workdir(work.path),
  ):
    pass
  work.status("teacher", CONFIG, {})


def test_the_lock_is_released_on_errors(tmp_path):
  with pytest.raises(ZeroDivisionError), workdir_lib.Workdir(tmp_path):
    raise ZeroDivisionError
  with workdir_lib.Workdir(tmp_path):
    pass


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(
      LtddError, match=r"work directory .*could not be written .*: Not a dir.*\. Expected a f"
    ),
    workdir_lib.Workdir(tmp_path / "file" / "run"),
  ):
    pass


def test_kill_minus_nine_releases_the_lock(tmp_path):
  child = textwrap.dedent("""
    import sys, time
    from ltdd_jax.artefacts import workdir as workdir_lib
    with workdir_lib.Workdir(sys.argv[1]):
      print("open", flush=True)
      time.sleep(60)
  """)
  env = os.environ | {"PYTHONPATH": ROOT}
  with subprocess.Popen(
    [sys.executable, "-c", child, tmp_path], stdout=subprocess.PIPE, env=env
  ) as process:
    assert process.stdout.readline() == b"open\n"
    with (
      pytest.raises(LtddError, match=f"is in use by process {process.pid} on "),
      workdir_lib.Workdir(tmp_path),
    ):
      pass
    process.send_signal(signal.SIGKILL)
    process.wait()
  with workdir_lib.Workdir(tmp_path):
    pass


# ---- the cache ----


def test_a_cache_serves_other_work_directories(tmp_path, caplog):
  cache = tmp_path / "cache"
  with workdir_lib.Workdir(tmp_path / "a", cache) as a:
    first = commit(a, trees={"net": {"w": np.ones(3)}})
  asked = workdir_lib.Workdir(tmp_path / "b", cache)
  assert asked.status("teacher", CONFIG, {}) == "ready"
  assert not (tmp_path / "b").exists()
  with (
    workdir_lib.Workdir(tmp_path / "b", cache) as b,
    caplog.at_level("INFO", logger="absl"),
  ):
    assert b.status("teacher", CONFIG | {"seed": 1}, {}) == "missing"
    assert b.status("teacher", CONFIG, {}) == "ready"
    assert "teacher: taken from the cache" in caplog.text
    assert b.load("teacher").meta == first.meta
    np.testing.assert_array_equal(b.load("teacher").tree("net")["w"], np.ones(3))
  assert leftovers(tmp_path) == []


def test_a_run_waits_for_another_that_makes_the_same(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(workdir_lib, "_POLL_SECONDS", 0.01)
  caplog.set_level("INFO", logger="absl")
  cache, asked = tmp_path / "cache", ("teacher", CONFIG, {})
  with (
    workdir_lib.Workdir(tmp_path / "a", cache) as a,
    workdir_lib.Workdir(tmp_path / "b", cache) as b,
    concurrent.futures.ThreadPoolExecutor() as threads,
  ):

    def second():
      with b.making(*asked):
        return b.status(*asked)

    with a.making(*asked):
      waiting = threads.submit(second)
      while "another run makes it for the cache" not in caplog.text:
        assert not waiting.done()
      commit(a)
    assert waiting.result() == "ready"
    with a.making(*asked), monkeypatch.context() as patch:
      patch.setattr(workdir_lib.checkpoint, "stop_requested", lambda: True)
      with pytest.raises(checkpoint.Interrupted, match="stopped while another run makes teacher"):
        second()


def test_damage_in_the_cache_is_named(tmp_path):
  cache = tmp_path / "cache"
  with workdir_lib.Workdir(tmp_path / "a", cache) as a:
    mark = commit(a).meta["fingerprint"]
  truncate(cache / "teacher" / mark / "x.npy")
  with (
    workdir_lib.Workdir(tmp_path / "b", cache) as b,
    pytest.raises(LtddError, match=f"damaged.*Delete {cache / 'teacher' / mark} and"),
  ):
    b.status("teacher", CONFIG, {})


def test_losing_a_race_for_the_cache_is_fine(tmp_path, caplog):
  cache = tmp_path / "cache"
  with workdir_lib.Workdir(tmp_path / "a", cache) as a, workdir_lib.Workdir(tmp_path / "b") as b:
    mark = commit(a).meta["fingerprint"]
    commit(b)
    b.cache = files.path(cache)
    real, answers = b._cached, iter([False])
    with pytest.MonkeyPatch.context() as m:  # b looked before a had finished
      m.setattr(b, "_cached", lambda *args: next(answers, None) is None and real(*args))
      b._offer("teacher", mark)
  assert caplog.text == ""
  assert leftovers(tmp_path) == []
  assert (cache / "teacher" / mark / "meta.json").exists()


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog):
  (tmp_path / "cache").write_text("a file")
  with workdir_lib.Workdir(tmp_path / "a", tmp_path / "cache") as a:
    commit(a)
    assert a.status("teacher", CONFIG, {}) == "ready"
  assert "teacher: not put into the cache" in caplog.text


def test_files_are_copied_where_links_are_not_possible(tmp_path, monkeypatch):
  def refuse(*args):
    raise OSError(18, "Invalid cross-device link")

  monkeypatch.setattr(os, "link", refuse)
  with workdir_lib.Workdir(tmp_path / "a", tmp_path / "cache") as a:
    mark = commit(a).meta["fingerprint"]
  assert manifest.open_artefact(tmp_path / "cache" / "teacher" / mark).meta["stage"] == "teacher"


# ---- other places ----


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  with workdir_lib.Workdir("~/run", "~/cache") as work:
    commit(work)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "run"]


@pytest.fixture
def object_store(monkeypatch):
  """Paths are treated as those of an object store: no locks, links or free space."""
  monkeypatch.setattr(files, "is_local", lambda name: False)
  for name in ("link", "fsync"):
    monkeypatch.setattr(os, name, lambda *args, name=name: pytest.fail(f"called {name}"))
  monkeypatch.setattr(files.shutil, "disk_usage", lambda path: pytest.fail("called disk_usage"))


def test_a_work_directory_in_an_object_store(tmp_path, object_store):
  cache = tmp_path / "cache"
  with workdir_lib.Workdir(tmp_path / "a", cache) as a:
    made = a.scratch("teacher", CONFIG, {}) / "store"
    made.mkdir()
    (made / "c.0").write_bytes(b"labels")
    tree = {"w": np.ones(3)}
    commit(a, trees={"net": tree}, folders={"labels": made})
    a.write_run_info({"seed": 3})
  with workdir_lib.Workdir(tmp_path / "b", cache) as b:
    assert b.status("teacher", CONFIG, {}) == "ready"
    artefact = b.load("teacher")
    np.testing.assert_array_equal(artefact.arrays["x"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(artefact.tree("net")["w"], tree["w"])
    assert (artefact.folder("labels") / "c.0").read_bytes() == b"labels"
  assert not list((tmp_path / "b" / ".scratch").glob("*/*"))


def test_an_unfinished_artefact_in_an_object_store_is_made_anew(
  tmp_path, object_store, monkeypatch
):
  """There a killed run leaves files without a manifest, which is written last."""
  with workdir_lib.Workdir(tmp_path) as work:
    with monkeypatch.context() as m:
      m.setattr(manifest, "seal", lambda *args: None)
      with pytest.raises(LtddError, match="no artefact of stage"):
        commit(work, arrays={"old": np.zeros(2)})
    assert (tmp_path / "teacher" / "old.npy").exists()
    assert work.status("teacher", CONFIG, {}) == "missing"
    assert sorted(commit(work).meta["files"]) == ["x.npy"]
    assert not (tmp_path / "teacher" / "old.npy").exists()


# ---- class maps and facts about the run ----


def test_check_same_classes(work):
  a = commit(work, "data", class_names=["cat", "dog", "owl"])
  workdir_lib.check_same_classes(a, a)
  b = commit(work, "distil/x", class_names=["cat", "owl", "dog", "ant"])
  with pytest.raises(LtddError) as error:
    workdir_lib.check_same_classes(a, b)
  lines = str(error.value).splitlines()
  assert lines[0].startswith("stages data and distil/x were made with different class maps")
  assert lines[1] == f"  {a.path} (3 classes): 1: dog, 2: owl, 3: (absent)"
  assert lines[2] == f"  {b.path} (4 classes): 1: owl, 2: dog, 3: ant"


def test_run_info(work):
  work.write_run_info({"seed": 3, "views": (1, 2)})
  assert json.loads((work.path / "config.json").read_text()) == {"seed": 3, "views": [1, 2]}
  (info,) = starts(work)
  assert info["pid"] == os.getpid()
  assert info["versions"] == provenance.versions()
  assert len(info["devices"]) == jax.device_count()
  assert info["code"] is None or set(info["code"]) == {"revision", "dirty"}
  assert "changed" not in info
  work.write_run_info({"seed": 3}, {"seed": (0, 3)})
  assert starts(work)[1]["changed"] == {"seed": [0, 3]}


def starts(work):
  return [json.loads(line) for line in (work.path / "runs.jsonl").read_text().splitlines()]


def test_every_start_is_recorded(work, monkeypatch):
  for number in range(3):
    monkeypatch.setattr(provenance, "run_info", lambda number=number: {"start": number})
    work.write_run_info({"seed": number})
  assert starts(work) == [{"start": 0}, {"start": 1}, {"start": 2}]
  assert json.loads((work.path / "config.json").read_text()) == {"seed": 2}


def test_artefacts_say_which_code_made_them(work, monkeypatch):
  monkeypatch.setattr(provenance, "code_revision", lambda: {"revision": "abc", "dirty": True})
  meta = commit(work).meta
  assert meta["code"] == {"revision": "abc", "dirty": True}
  assert meta["hardware"].startswith(f"{os.cpu_count()} cores ")
