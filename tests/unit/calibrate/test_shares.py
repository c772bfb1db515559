"""Fits of several processes, each of which reads some of the rows, as threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from ltdd_jax import adsa, calibrate

EPOCHS, K = 3, 4
COUNTS = np.array([1000.0, 300, 100, 10])
LABELS = np.repeat(np.arange(K), [4, 4, 2, 3])


class Source:
  """Rows of logits with a share."""

  dtype = np.dtype(np.float32)

  def __init__(self, logits, share=None):
    self.shape, self._flat = logits.shape, logits.reshape(-1, K)
    if share is not None:
      self.share = share

  def rows(self, start, stop):
    return self._flat[start:stop]


class Exchange:
  """Adds up the arrays of all threads."""

  def __init__(self, count):
    self.found, self.barrier = [None] * count, threading.Barrier(count, timeout=60)

  def total(self, index, sums):
    self.found[index] = sums
    self.barrier.wait()
    out = np.stack(self.found).sum(0)
    self.barrier.wait()
    return out


@pytest.fixture
def logits():
  noise = np.random.default_rng(0).normal(size=(EPOCHS, len(LABELS), K))
  return (2 * np.eye(K)[LABELS] + np.log(COUNTS) + noise).astype(np.float32)


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize(
  "options",
  [
    {"name": "adsa", "bootstrap": 20},
    {"name": "adsa", "criterion": "nll", "bootstrap": 20},
    {"name": "adsa", "criterion": "marginal", "bootstrap": 20},
    {"name": "adsa_vector"},
    {"name": "em"},
    {"name": "vector_scaling"},
  ],
  ids=lambda options: "-".join(map(str, options.values())),
)
def test_shares_fit_what_one_fits(logits, options, count, monkeypatch):
  monkeypatch.setattr(adsa, "CHUNK", 256 * 8)  # blocks of 8 rows: 39 rows are five blocks
  fit = lambda source: jax.device_get(
    calibrate.make_calibrator(**options).fit(source, LABELS, np.log(COUNTS / COUNTS.sum()))
  )
  whole, exchange = fit(Source(logits)), Exchange(count)

  def own(index):
    share = adsa.Share(index, count, lambda sums: exchange.total(index, sums))
    return fit(Source(logits, share))

  with ThreadPoolExecutor(count) as pool:
    found = list(pool.map(own, range(count)))
  for one in found:
    jax.tree.map(np.testing.assert_array_equal, one, found[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found[0], whole)


def test_more_shares_than_blocks(logits):
  exchange = Exchange(2)

  def own(index):
    share = adsa.Share(index, 2, lambda sums: exchange.total(index, sums))
    return adsa.fit(Source(logits, share), LABELS, COUNTS).tau

  with ThreadPoolExecutor(2) as pool:
    taus = list(pool.map(own, range(2)))
  assert taus == [adsa.fit(logits, LABELS, COUNTS).tau] * 2
