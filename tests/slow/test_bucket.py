"""Work directories in a bucket of `tests/bucket.py`, which emulates Google Cloud Storage."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import bucket as bucket_lib
from tests.multidevice import test_processes
from tests.multidevice.test_multidevice import environment

pytestmark = pytest.mark.slow
COMMAND = (
  sys.executable, "-m", "launch.main", "--config",
  "configs/digits_lt.py:preset=smoke,calibrators=plain,method=random",
  "--checkpoint_seconds=1",
)  # fmt: skip
LONG = "--config.teacher.num_epochs=600"


@pytest.fixture
def bucket(monkeypatch):
  pytest.importorskip("gcsfs", reason="needs the extra gcs")
  with bucket_lib.Server() as server:
    for name, value in server.environment.items():
      monkeypatch.setenv(name, value)
    yield server


def start(workdir, *flags):
  command = [*COMMAND, "--workdir", str(workdir), *flags]
  return subprocess.Popen(
    command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def run(workdir, *flags, code=0):
  process = start(workdir, *flags)
  said = process.communicate(timeout=500)[0]
  assert process.returncode == code, said
  return said


def wait_for(bucket, pattern, process, seconds=200.0):
  end = time.monotonic() + seconds
  while not any(re.fullmatch(pattern, name) for name in list(bucket.objects)):
    assert time.monotonic() < end
    assert process.poll() is None
    time.sleep(0.05)


def arrays(manifests):
  """{file: hash} of arrays and labels of {stage: manifest}; files of Orbax hold times."""
  return {
    (stage, name): about["sha256"]
    for stage, text in manifests.items()
    for name, about in json.loads(text)["files"].items()
    if not name.startswith("trees/")
  }


def in_bucket(bucket, run):
  found = {name: x for name, x in bucket.objects.items() if name.startswith(f"{run}/")}
  meta = {k: x.content for k, x in found.items() if k.endswith("/meta.json")}
  return {k.removeprefix(f"{run}/").removesuffix("/meta.json"): x for k, x in meta.items()}


def in_folder(folder):
  return {
    p.parent.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("meta.json")
  }


def test_a_killed_run_goes_on_and_gives_what_a_folder_gives(bucket, tmp_path):
  cache = "--cache=gs://bucket/cache"
  process = start("gs://bucket/run", LONG, cache)
  wait_for(bucket, r"run/\.scratch/teacher/.*/teacher/teacher/\d+/_CHECKPOINT_METADATA", process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert "run/teacher/meta.json" not in bucket.objects
  said = run("gs://bucket/run", LONG, cache)
  assert "teacher: resumed; its time and memory" in said
  run(tmp_path / "run", LONG)
  there = in_bucket(bucket, "run")
  assert arrays(there) == arrays(in_folder(tmp_path / "run"))
  assert len(there) == 7
  assert not [name for name in bucket.objects if ".scratch" in name]
  assert [name for name in bucket.objects if re.match(r"run/metrics/teacher/.*tfevents", name)]

  before = {k: x.generation for k, x in bucket.objects.items() if "meta.json" in k}
  said = run("gs://bucket/run", LONG, cache)
  assert (said.count("ready, skipped"), said.count("done in")) == (7, 0)
  said = run("gs://bucket/other", LONG, cache)
  assert (said.count("taken from the cache gs://bucket/cache"), said.count("done in")) == (7, 0)
  assert before.items() <= {k: x.generation for k, x in bucket.objects.items()}.items()


def test_a_bucket_that_becomes_read_only_is_named_and_the_run_goes_on_later(bucket):
  process = start("gs://bucket/run", LONG)
  wait_for(bucket, r"run/\.scratch/teacher/.*/teacher/teacher/\d+/_CHECKPOINT_METADATA", process)
  bucket.fault = lambda method: (403, "no access to create objects") if method != "GET" else None
  said = process.communicate(timeout=200)[0]
  assert process.returncode == 2
  assert re.search(r"error: .*gs://bucket/run.*no access to create objects\. Expected a buc", said)
  assert "run/data/meta.json" in bucket.objects
  bucket.fault = lambda method: None
  said = run("gs://bucket/run", LONG)
  assert "data: ready, skipped" in said
  assert "teacher: resumed" in said


def test_a_bucket_that_is_not_there_is_named(bucket):
  said = run("gs://another/run", code=2)
  assert re.search(r"error: .* in gs://another/run: not found: .*Expected a bucket that", said)
  assert "Traceback" not in said


def test_two_processes_in_a_bucket_give_what_they_give_in_a_folder(bucket, tmp_path):
  for text in test_processes.run("gs://bucket/two", 2, "stop", "stream"):
    assert "interrupted: teacher/teacher: stopped after step" in text
  two = test_processes.run("gs://bucket/two", 2, "stream")
  one = test_processes.run(tmp_path / "two", 2, "stream")
  assert [text.split("top1 ")[1] for text in two] == [text.split("top1 ")[1] for text in one]
  assert arrays(in_bucket(bucket, "two")) == arrays(in_folder(tmp_path / "two"))
