import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ltdd_jax.training import metrics

K = 4
counts = st.builds(
  lambda confusion, lost: metrics.ClassCounts(jnp.asarray(confusion), confusion.sum(1) + lost),
  hnp.arrays(np.int32, (K, K), elements=st.integers(0, 1000)),
  hnp.arrays(np.int32, K, elements=st.integers(0, 1000)),
)
# One shape, so that nothing compiles twice.
logits_of = hnp.arrays(np.float32, (6, K), elements=st.integers(-3, 3))
labels_of = hnp.arrays(np.int32, 6, elements=st.integers(0, K - 1))
mask_of = hnp.arrays(np.bool_, 6)


def same(a, b):
  np.testing.assert_array_equal(a.confusion, b.confusion)
  np.testing.assert_array_equal(a.total, b.total)


def count(logits, labels, mask):
  return metrics.ClassCounts.from_batch(
    jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), K
  )


@settings(max_examples=30, deadline=None)
@given(counts, counts, counts)
def test_merge_is_associative_and_commutative_and_empty_is_neutral(a, b, c):
  same(a.merge(b).merge(c), a.merge(b.merge(c)))
  same(a.merge(b), b.merge(a))
  same(a.merge(metrics.ClassCounts.empty(K)), a)


@settings(max_examples=30, deadline=None)
@given(logits_of, labels_of, mask_of, logits_of, labels_of)
def test_padding_changes_nothing(logits, labels, mask, junk, junk_labels):
  padded = np.where(mask[:, None], logits, junk), np.where(mask, labels, junk_labels)
  same(count(logits, labels, mask), count(*padded, mask))


@settings(max_examples=30, deadline=None)
@given(logits_of, labels_of, mask_of)
def test_counts_equal_a_loop_and_split_batches_merge(logits, labels, mask):
  whole = count(logits, labels, mask)
  confusion, total = np.zeros((K, K), int), np.zeros(K, int)
  for row, label, counts_in in zip(logits, labels, mask, strict=True):
    total[label] += counts_in
    confusion[label, np.argmax(row)] += counts_in
  np.testing.assert_array_equal(whole.confusion, confusion)
  np.testing.assert_array_equal(whole.correct, np.diag(confusion))
  np.testing.assert_array_equal(whole.total, total)
  first = np.arange(6) < 3
  same(whole, count(logits, labels, mask & first).merge(count(logits, labels, mask & ~first)))


@settings(max_examples=30, deadline=None)
@given(counts, st.permutations(range(K)))
def test_accuracies_follow_a_relabelling_of_classes(a, order):
  order = np.asarray(order)
  moved = metrics.ClassCounts(a.confusion[order][:, order], a.total[order])
  np.testing.assert_allclose(a.per_class()[order], moved.per_class())
  np.testing.assert_allclose(a.top1(), moved.top1())
