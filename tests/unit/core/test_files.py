"""Paths: what a user may write, and what is refused."""

import fsspec
import pytest
from etils import epath

from ltdd_jax.core import files
from ltdd_jax.core.types import LtddError


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert files.path("~/a") == tmp_path / "a"
  assert files.path(tmp_path / "b") == tmp_path / "b"


def test_object_stores_keep_their_names(monkeypatch):
  monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: name)
  found = files.path("gs://bucket/runs") / "a"
  assert str(found) == "gs://bucket/runs/a"
  assert str(files.absolute(found)) == "gs://bucket/runs/a"
  assert not files.is_local(found)


def test_a_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(LtddError, match=r"gs://bucket/a needs the package gcsfs; install it: pip"):
    files.path("gs://bucket/a")


def test_a_store_that_is_not_known_makes_no_folder_of_its_name():
  with pytest.raises(
    LtddError, match=r"path hdfs://a/b: expected a local path.* with gs:// or s3://"
  ):
    files.path("hdfs://a/b")


def test_many_files_are_flushed_at_once(tmp_path, monkeypatch):
  """Thousands of image files, one by one, would take minutes."""
  calls = []
  monkeypatch.setattr(files, "_MANY_FILES", 3)
  monkeypatch.setattr(files.os, "sync", lambda: calls.append(1))
  for count in (1, 3):
    with files.appearing(epath.Path(tmp_path / str(count)), epath.Path(tmp_path)) as folder:
      folder.mkdir()
      for i in range(count):
        (folder / str(i)).write_text("x")
  assert (len(calls), len(list((tmp_path / "3").iterdir()))) == (1, 3)


# ---- object stores ----

BUCKET = epath.Path("gs://bucket/run")
HttpError = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})  # no OSError


def test_listings_of_object_stores_are_not_kept(monkeypatch):
  monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: name)
  files.path("gs://bucket/run")
  assert fsspec.config.conf["gs"] == {"use_listings_cache": False}


@pytest.mark.parametrize(
  ("error", "why"),
  [
    (OSError("Forbidden: b/bucket/o\nno access."), "Forbidden: b/bucket/o: no access"),
    (FileNotFoundError("b/bucket/o"), "not found: b/bucket/o"),
    (HttpError("Too many requests, 429"), "Too many requests, 429"),
    (ValueError("ABORTED: quota [http_response_code='429']"), "ABORTED: quota"),  # tensorstore's
  ],
)
def test_errors_of_object_stores_are_explained(error, why):
  with (
    pytest.raises(LtddError) as caught,
    files.explained("stage teacher", folder=BUCKET, errors=files.TENSORSTORE),
  ):
    raise error
  assert str(caught.value) == (
    f"stage teacher: could not be read or written in gs://bucket/run: {why}. Expected a bucket "
    "that answers and lets you read and write; mend that or name another one. What was "
    "finished before stays valid."
  )


def test_what_no_object_store_raised_is_left_alone(tmp_path):
  for folder, error in ((BUCKET, KeyError("a")), (tmp_path, HttpError("of a download"))):
    with (
      pytest.raises(type(error)),
      files.explained("run", folder=folder, errors=()),
    ):
      raise error


def test_an_empty_folder_of_an_object_store_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "is_local", lambda name: False)
  assert list(files.below(epath.Path(tmp_path / "none"))) == []
