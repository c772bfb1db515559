"""What keeps several processes from starting together."""

import socket

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from ltdd_jax.core import mesh, startup
from ltdd_jax.core.types import LtddError


@pytest.mark.parametrize("address", ["localhost:1", "localhost:port", "nowhere.invalid:80"])
def test_a_coordinator_that_does_not_answer_is_named(monkeypatch, address):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
  monkeypatch.setenv("JAX_PROCESS_ID", "1")
  monkeypatch.setattr(startup, "_COORDINATOR_SECONDS", 0.1)
  with pytest.raises(LtddError, match=f"no coordinator answers at {address} .*for 0.1 s; expected"):
    startup.setup_jax(distributed=True)


def test_a_coordinator_that_answers(monkeypatch):
  with socket.create_server(("localhost", 0)) as server:
    address = f"localhost:{server.getsockname()[1]}"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    startup._check_coordinator()


def test_processes_with_another_text_are_named(monkeypatch):
  mesh.check_same("a config", "one process asks nobody")
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  others = lambda digest: np.stack([digest, digest + np.uint8(1), digest])
  monkeypatch.setattr(multihost_utils, "process_allgather", others)
  with pytest.raises(
    LtddError, match=r"processes \[1\] of 3 have a config other than those of pro"
  ):
    mesh.check_same("a config", "a")
  monkeypatch.setattr(multihost_utils, "process_allgather", lambda digest: np.stack([digest] * 3))
  mesh.check_same("a config", "a")
