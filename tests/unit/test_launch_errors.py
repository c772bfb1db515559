"""What a program says where a step failed on one of several processes."""

import os

import jax
import pytest

from launch import errors


def run(monkeypatch, error, processes=2):
  def main(argv):
    raise error

  def end(code):
    raise SystemExit(code)

  monkeypatch.setattr(jax, "process_count", lambda: processes)
  monkeypatch.setattr(os, "_exit", end)
  return errors.in_one_message(main)([])


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])  # a dispatch raises both
def test_a_lost_process_is_one_message(monkeypatch, capsys, kind):
  with pytest.raises(SystemExit, match="3"):
    run(monkeypatch, kind("UNKNOWN: Gloo AllGather failed\nmore"))
  said = capsys.readouterr().err
  assert said.startswith("error: process 0: a step failed, most likely since another process has")
  assert "ended: UNKNOWN: Gloo AllGather failed\nGive the same command on every host again" in said


@pytest.mark.parametrize(("text", "processes"), [("UNKNOWN: Gloo", 1), ("operands differ", 2)])
def test_other_errors_keep_their_traceback(monkeypatch, text, processes):
  with pytest.raises(ValueError, match=text):
    run(monkeypatch, ValueError(text), processes)
