import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import longtail

CIFAR10 = np.random.RandomState(7).permutation(np.repeat(np.arange(10), 5000))


@pytest.mark.parametrize(
  ("n_max", "k", "totals"),
  [
    (5000, 10, {10: 20431, 20: 17023, 50: 13996, 100: 12406, 200: 11203}),
    (500, 100, {10: 19573, 20: 15907, 50: 12608, 100: 10847, 200: 9502}),
    (500, 200, {10: 39072, 20: 31711, 50: 25082, 100: 21549, 200: 18836}),
  ],
)
def test_published_totals(n_max, k, totals):
  assert {f: int(longtail.class_counts(n_max, k, f).sum()) for f in totals} == totals


def test_published_counts():
  counts = longtail.class_counts(5000, 10, 100)
  assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
  assert longtail.class_counts(500, 100, 200)[-5:].tolist() == [3, 2, 2, 2, 2]
  assert longtail.class_counts(114, 10, 1).tolist() == [114] * 10


def test_ltdd_uses_the_published_positions_in_every_class():
  split = longtail.make_split(CIFAR10, 10, rule="ltdd", imbalance_factor=100)
  assert split.counts == (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
  start = 0
  for c, n in enumerate(split.counts):
    members = np.flatnonzero(c == CIFAR10)
    chosen = split.indices[start : start + 10]
    positions = [1501, 2586, 2653, 1055, 705, 106, 589, 2468, 2413, 1600]
    np.testing.assert_array_equal(chosen, members[positions])
    start += n
  assert start == 12406 == len(split.indices)
  assert split.indices.dtype == np.int64
  assert split.labels.dtype == np.int32
  np.testing.assert_array_equal(split.labels, CIFAR10[split.indices])


def test_ltdd_subsets_are_nested():
  large = longtail.make_split(CIFAR10, 10, imbalance_factor=100)
  small = longtail.make_split(CIFAR10, 10, imbalance_factor=200)
  assert set(small.indices) < set(large.indices)


def test_ldam_shuffles_class_after_class_with_one_generator():
  split = longtail.make_split(CIFAR10, 10, rule="ldam", imbalance_factor=100)
  rng = np.random.RandomState(0)
  expected = []
  for c, n in enumerate(split.counts):
    members = np.where(c == CIFAR10)[0]
    rng.shuffle(members)
    expected.append(members[:n])
  np.testing.assert_array_equal(split.indices, np.concatenate(expected))


def test_counts_rule_keeps_an_empty_class():
  split = longtail.make_split(CIFAR10, 10, rule="counts", counts=[9, 0, 3, 1, 1, 1, 1, 1, 1, 1])
  assert np.bincount(split.labels, minlength=10).tolist() == [9, 0, 3, 1, 1, 1, 1, 1, 1, 1]
  assert split.imbalance_factor == 9


def test_counts_rule_with_the_profile_is_the_ltdd_split():
  ltdd = longtail.make_split(CIFAR10, 10, imbalance_factor=50)
  again = longtail.make_split(CIFAR10, 10, rule="counts", counts=ltdd.counts)
  assert again.sha256 == ltdd.sha256


@pytest.mark.parametrize("rule", ["ltdd", "ldam"])
def test_a_long_tailed_source_is_not_cut_from_its_average(rule):
  labels = np.repeat([0, 1, 2], [90, 20, 10])
  with pytest.raises(LtddError, match="90 training images in the largest class, 40 on average"):
    longtail.make_split(labels, 3, rule=rule, imbalance_factor=10)
  uneven = np.repeat([0, 1, 2], [80, 30, 10])
  assert longtail.make_split(uneven, 3, rule=rule, imbalance_factor=10).counts == (40, 12, 4)


def test_as_is_keeps_everything_in_order():
  labels = np.array([2, 0, 0, 1, 0])
  split = longtail.make_split(labels, 3, rule="as_is")
  assert split.indices.tolist() == [0, 1, 2, 3, 4]
  assert split.counts == (3, 1, 1)
  assert split.imbalance_factor == 3


def test_hash_depends_on_the_content_alone():
  one = longtail.make_split(CIFAR10, 10, imbalance_factor=200)
  assert (
    one.sha256 == longtail.make_split(CIFAR10.astype(np.uint8), 10, imbalance_factor=200).sha256
  )
  other_seed = longtail.make_split(CIFAR10, 10, imbalance_factor=200, seed=43)
  assert other_seed.counts == one.counts
  assert other_seed.sha256 != one.sha256


def test_hash_is_the_stated_one():
  split = longtail.make_split(np.array([1, 0, 1]), 2, rule="as_is")
  import hashlib

  parts = [2, 3, 1, 2, 0, 1, 2, 1, 0, 1]  # k, n, counts, indices, labels
  assert split.sha256 == hashlib.sha256(np.array(parts, "<i8").tobytes()).hexdigest()


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"imbalance_factor": 0.5}, "imbalance_factor=0.5: expected .* a number >= 1"),
    ({"imbalance_factor": float("nan")}, "imbalance_factor=nan"),
    ({"seed": -1}, r"seed=-1: expected a whole number from 0"),
    ({"rule": "lddt"}, "split rule 'lddt' is not known. Rules: .* as_is, and .* matched"),
    ({"rule": "counts"}, "the vector `counts` and rule='counts' go together"),
    ({"counts": [1] * 10}, "go together"),
    ({"rule": "as_is", "imbalance_factor": 10}, "this rule measures the imbalance"),
    ({"rule": "counts", "counts": [1, 2]}, "expected 10 integers >= 0"),
    ({"rule": "counts", "counts": [-1] + [2] * 9}, "expected 10 integers >= 0"),
    ({"rule": "counts", "counts": np.full(10, 0.5)}, "expected 10 integers >= 0"),
    ({"rule": "counts", "counts": [[1]] * 9 + [[1, 2]]}, "expected 10 integers >= 0"),
    ({"rule": "counts", "counts": [0] * 10}, "no image at all"),
    ({"rule": "counts", "counts": [1] * 9 + [9999]}, "class 9 has 5000 .* asks for 9999"),
  ],
)
def test_bad_arguments(kwargs, message):
  with pytest.raises(LtddError, match=message):
    longtail.make_split(CIFAR10, 10, **kwargs)


def test_labels_beyond_the_classes_are_refused():
  with pytest.raises(LtddError, match=r"train_labels reach 9 but num_classes=5"):
    longtail.make_split(CIFAR10, 5)


def test_an_unbalanced_source_is_too_short_for_a_profile():
  labels = np.array([0] * 2 + [1] * 8)
  with pytest.raises(LtddError, match=r"class 0 has 2 training images but the split asks for 5"):
    longtail.make_split(labels, 2, imbalance_factor=2)
  with pytest.raises(LtddError, match=r"are short\)\. Expected counts of at most \[2, 8\]\.$"):
    longtail.make_split(labels, 2, rule="counts", counts=(3, 8))


def test_short_classes_of_an_almost_even_source_keep_all():
  labels = np.repeat(np.arange(3), [6, 9, 3])  # the rule wants 6, 6, 6
  split = longtail.make_split(labels, 3)
  assert split.counts == (6, 6, 3)
  assert split.num_short == 1
  assert longtail.make_split(labels, 3, imbalance_factor=2).num_short == 0
  with pytest.raises(LtddError, match="class 2 has 3 training images but the split asks for 6"):
    longtail.make_split(labels, 3, rule="ldam")


def test_log_prior():
  prior = longtail.log_prior((3, 1, 0))
  np.testing.assert_allclose(prior, [np.log(0.75), np.log(0.25), -np.inf], rtol=1e-6)
  assert prior.dtype == np.float32


def test_groups_by_counts_are_kangs():
  counts = longtail.class_counts(500, 100, 100)
  sizes = {name: len(c) for name, c in longtail.groups(counts, "counts(100,20)").items()}
  assert sizes == {"head": 35, "mid": 35, "tail": 30}
  edges = longtail.groups([101, 100, 20, 19], "counts(100, 20)")
  assert edges == {"head": (0,), "mid": (1, 2), "tail": (3,)}


def test_groups_by_thirds():
  counts = longtail.class_counts(5000, 10, 100)
  expected = {"head": (0, 1, 2), "mid": (3, 4, 5, 6), "tail": (7, 8, 9)}
  assert longtail.groups(counts, "thirds") == expected
  assert longtail.groups(counts[::-1])["head"] == (7, 8, 9)
  assert longtail.groups([5, 5, 5])["tail"] == (2,)
  assert longtail.groups([5, 5, 5, 5]) == {"head": (0,), "mid": (1, 2), "tail": (3,)}


def test_groups_of_two_classes_and_of_one():
  assert longtail.groups([5, 1]) == {"head": (0,), "mid": (), "tail": (1,)}
  assert longtail.groups([1, 5]) == {"head": (1,), "mid": (), "tail": (0,)}
  assert longtail.groups([3, 3]) == {"head": (0,), "mid": (), "tail": (1,)}
  assert longtail.groups([5]) == {"head": (), "mid": (0,), "tail": ()}


def test_bad_group_rules():
  with pytest.raises(LtddError, match=r"'counts\(20,100\)': .* head and tail; expected a >= b - 1"):
    longtail.groups([1, 2, 3], "counts(20,100)")
  assert longtail.groups([1, 2], "counts(1,2)") == {"head": (1,), "mid": (), "tail": (0,)}
  with pytest.raises(LtddError, match=r"group rule 'quarters' is not known"):
    longtail.groups([1, 2, 3], "quarters")


# ---- published subsets ----


def test_other_images_by_a_published_rule_are_named():
  labels = np.repeat(np.arange(10), 5000)
  split = longtail.make_split(labels, 10, rule="ltdd", imbalance_factor=100)
  assert longtail.provenance("cifar10", split) == "published rule, other images"
  assert longtail.provenance("cifar100", split).startswith("published rule; whether")
  assert longtail.provenance("digits", split) == ""
  whole = longtail.make_split(labels, 10, rule="as_is")
  assert longtail.provenance("cifar10", whole) == ""
