"""Terms of CDA, G-VBSM and EDC against float64 oracles, and their gradients.

Tolerances: float32 sums of a hundred terms of order one, 1e-5; eigenvalues of order ten, 1e-4.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltdd_jax.core.types import LtddError
from ltdd_jax.data import crops
from ltdd_jax.distil import layer_statistics, objectives
from ltdd_jax.distil.layer_statistics import Rule
from ltdd_jax.distil.sre2l import CURRICULA, crop_scale
from ltdd_jax.models import taps
from ltdd_jax.models.taps import LayerInput
from ltdd_jax.teachers import statistics
from ltdd_jax.teachers.statistics import Target
from tests import small
from tests.reference import distil_ref as ref

K, Q = 4, 2
REAL_LABELS = [0, 0, 0, 2, 2, 3]  # class 1 has no image
LABELS = [2, 0, 1, 2, 2]  # class 3 has no slot, class 2 three
LAYERS = (
  ("conv0", "conv", (5, 4, 2)),
  ("norm0", "batch_norm", (4, 4, 3)),
  ("conv1", "conv", (4, 4, 3)),
)
MOMENTS = {
  "mean": np.array([0.1, -0.2, 0.3], np.float32),
  "var": np.array([1.0, 2.0, 0.5], np.float32),
}
VARIABLES = {"batch_stats": {"norm0": MOMENTS}}


def maps(seed, n):
  """Inputs of three layers for n images, each image with a mean of its own."""
  draws = np.random.RandomState(seed)
  return tuple(
    LayerInput(path, jnp.float32(draws.randn(n, *shape) + draws.randn(n, 1, 1, 1)), kind)
    for path, kind, shape in LAYERS
  )


REAL = statistics.of_batch(maps(0, 6), jax.nn.one_hot(np.array(REAL_LABELS), K), Q)
RULES = {
  "gvbsm": Rule(),
  "unbiased": Rule(ema_start="unbiased"),
  "edc": Rule(alpha=0.5),
  "weights": Rule(alpha=0.3, first=3.0, momentum=0.5),
  "released": Rule(alpha=0.5, released=True),
  "batch": Rule(alpha=0.25, released=True, batch=1),
}


@functools.cache
def jitted(rule):
  """Compiled once for each rule."""
  return jax.jit(
    lambda values, labels, running, key: layer_statistics.match(
      rule,
      tuple(LayerInput(p, v, k) for (p, k, _), v in zip(LAYERS, values, strict=True)),
      labels, VARIABLES, REAL, running, key,
    )
  )  # fmt: skip


def run(rule, seed, running, key=None):
  values = [x.value for x in maps(seed, len(LABELS))]
  key = jax.random.key(0) if key is None else key
  return jitted(rule)(values, jnp.array(LABELS), running, key)


def expected(rule, seeds):
  """R after steps on the batches of `seeds`, from the formulas."""
  total = 0.0
  share = {0: 1 / 4, 2: 3 / 4}  # of the slots whose class has training images
  real = maps(0, 6)
  for i, (_, kind, _) in enumerate(LAYERS):
    real_maps = np.float64(real[i].value)
    seen = [np.float64(maps(s, len(LABELS))[i].value) for s in seeds]
    shown = [ref.batch_statistics(x, kind, Q) for x in seen]
    mean_of = lambda parts: [
      ref.running_mean([p[j] for p in parts], rule.momentum, rule.ema_start == "unbiased")
      for j in range(len(parts[0]))
    ]
    target = list(MOMENTS.values())
    if kind == "conv":
      target = ref.batch_statistics(real_maps, kind, Q)
    if kind == "conv" and rule.batch:  # of one image: the variance within it
      each = [ref.batch_statistics([x], kind, Q) for x in real_maps]
      target[1::2] = [sum(e[i] for e in each) / len(each) for i in (1, 3)]
    part = rule.alpha * ref.distance(target, mean_of(shown))
    each = ref.class_statistics(real_maps, REAL_LABELS, kind, Q, rule.released)
    if rule.released and kind == "conv":
      each = {c: [m, v, tv, tm] for c, (m, v, tm, tv) in each.items()}
    if rule.released:
      mix = [sum(share[c] * each[c][j] for c in share) for j in range(len(target))]
      part += (1 - rule.alpha) * ref.distance(mix, mean_of(shown))
    else:
      mine = [ref.class_statistics(x, LABELS, kind, Q, rule.released) for x in seen]
      for c, p in share.items():
        part += (1 - rule.alpha) * p * ref.distance(each[c], mean_of([m[c] for m in mine]))
    total += (rule.first if i == 0 else 1) * part
  return total


@pytest.mark.parametrize("name", RULES)
def test_match_is_the_formula(name):
  rule = RULES[name]
  running = layer_statistics.start(rule, REAL)
  first, running = run(rule, 1, running)
  second, _ = run(rule, 2, running)
  np.testing.assert_allclose(first, expected(rule, [1]), rtol=1e-5)
  np.testing.assert_allclose(second, expected(rule, [1, 2]), rtol=1e-5)


@pytest.mark.parametrize("name", ["gvbsm", "edc", "weights", "released"])
def test_of_many_classes_those_of_the_batch_are_seen(name):
  """Classes 0 to 3 have the numbers 1, 4, 6 and 8 of nine, of which the others have no image."""
  rule, among, k = RULES[name], np.array([1, 4, 6, 8]), 9
  real = statistics.of_batch(maps(0, 6), jax.nn.one_hot(among[REAL_LABELS], k), Q)
  key, few, many = jax.random.key(0), *(layer_statistics.start(rule, s) for s in (REAL, real))
  for seed, labels in ((1, LABELS), (2, [3, 3, 0, 0, 3])):
    values = [x.value for x in maps(seed, len(labels))]

    def distance(values, running, stats, chosen):
      inputs = tuple(LayerInput(p, v, k) for (p, k, _), v in zip(LAYERS, values, strict=True))
      return layer_statistics.match(rule, inputs, chosen, VARIABLES, stats, running, key)

    graded = jax.jit(jax.value_and_grad(distance, has_aux=True))
    (a, few), slope = graded(values, few, REAL, jnp.array(labels))
    (b, many), other = graded(values, many, real, jnp.array(among[labels]))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), slope, other)
  for one, all_ in zip(few, many, strict=True):
    own = jax.tree.map(lambda x: x[among], all_.classes)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.classes, own)
    if rule.groups:
      assert not np.delete(all_.classes.weight, among).any()


def test_running_mean_starts_at_zero_with_the_gradient_of_the_newest():
  rule, target = Rule(momentum=0.8), jnp.array([[1.0, -2.0]])
  running = layer_statistics.Running(Target(jnp.zeros((1, 2)), jnp.zeros((1, 2))), jnp.zeros(1))
  moved = jnp.ones(1, bool)

  def term(s, rule=rule):
    shown, _ = layer_statistics.follow(rule, running, Target(s, jnp.ones((1, 2))), moved)
    return objectives.safe_norm(target - shown.mean)[0], shown.mean

  s = jnp.array([[0.5, 3.0]])
  grad, shown = jax.grad(term, has_aux=True)(s)
  np.testing.assert_allclose(shown, 0.2 * s, rtol=1e-6)
  np.testing.assert_allclose(grad, -(target - 0.2 * s) / ref.norm(target - 0.2 * s), rtol=1e-6)
  _, shown = term(s, Rule(momentum=0.8, ema_start="unbiased"))
  np.testing.assert_allclose(shown, s, rtol=1e-6)


def test_dropped_convolutions_neither_count_nor_move():
  rule = Rule(drop=1.0, ema_start="unbiased")
  before = layer_statistics.start(rule, REAL)
  total, after = run(rule, 1, before)
  shown = ref.batch_statistics(np.float64(maps(1, 5)[1].value), "batch_norm", Q)
  np.testing.assert_allclose(total, ref.distance(list(MOMENTS.values()), shown), rtol=1e-5)
  for i, moved in enumerate((False, True, False)):
    assert bool(after[i].batch.weight[0]) == moved
    assert bool(np.any(after[i].batch.stats.mean)) == moved


def test_convolutions_are_dropped_at_the_given_rate_and_apart():
  rule = Rule(drop=0.4)
  start = layer_statistics.start(rule, REAL)
  weights = [run(rule, 1, start, jax.random.key(i))[1] for i in range(60)]
  kept = np.array([[w[0].batch.weight[0] > 0, w[2].batch.weight[0] > 0] for w in weights])
  np.testing.assert_allclose(kept.mean(0), 0.6, atol=0.2)
  assert len(np.unique(kept, axis=0)) == 4


@pytest.mark.parametrize("name", ["gvbsm", "edc", "released"])
def test_gradient_of_match(name):
  """Without memory (momentum 0) the straight-through gradient is that of the value."""
  rule = RULES[name]._replace(momentum=0.0)
  values = tuple(x.value for x in maps(1, len(LABELS)))
  running, key = layer_statistics.start(rule, REAL), jax.random.key(0)
  loss = jax.jit(lambda v: jitted(rule)(v, jnp.array(LABELS), running, key)[0])
  grad = jax.jit(jax.grad(loss))(values)
  draws = np.random.RandomState(0)  # uphill everywhere, so that the slope is above rounding
  way = tuple(np.sign(g) * np.float32(draws.rand(*g.shape)) for g in grad)
  at = lambda e: loss(tuple(v + np.float32(e) * w for v, w in zip(values, way, strict=True)))
  slope = sum(jnp.vdot(g, w) for g, w in zip(grad, way, strict=True))
  np.testing.assert_allclose(slope, (at(1e-2) - at(-1e-2)) / 2e-2, rtol=2e-3)


@pytest.mark.parametrize("rule", [Rule(), Rule(alpha=0.5)], ids=["gvbsm", "edc"])
def test_gradient_in_the_pixels_through_a_network(rule):
  """Without memory, as above; steps are small, so that few ReLUs change sides."""
  t = small.teacher()
  variables, real = jax.tree.map(jnp.asarray, (t.variables, small.teacher_statistics()))
  rule, labels = rule._replace(momentum=0.0), jnp.array([0, 1, 0, 2, 2])
  running, key = layer_statistics.start(rule, real), jax.random.key(0)

  @jax.jit
  def loss(x):
    logits, inputs = taps.apply_with_inputs(t.model, variables, x, statistics.LAYERS)
    part, _ = layer_statistics.match(rule, inputs, labels, variables, real, running, key)
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return part - own.mean()

  x = np.float32(0.2 * np.random.RandomState(2).randn(5, *small.SPEC.image_shape))
  grad = jax.jit(jax.grad(loss))(x)
  way = np.sign(grad) * np.float32(np.random.RandomState(0).rand(*x.shape))
  at = lambda e: loss(x + np.float32(e) * way)
  np.testing.assert_allclose(jnp.vdot(grad, way), (at(1e-3) - at(-1e-3)) / 2e-3, rtol=5e-3)


def test_statistics_of_other_networks_are_refused():
  running = layer_statistics.start(Rule(), REAL)
  other = REAL.replace(layers=REAL.layers[::-1])
  with pytest.raises(LtddError, match="not those of the teacher"):
    layer_statistics.match(
      Rule(), maps(1, 5), jnp.array(LABELS), VARIABLES, other, running, jax.random.key(0)
    )


# ---- densification ----

dense = jax.jit(objectives.densification)


def faint(n, seed=0, side=32):
  """Images whose Gram matrices have eigenvalues of order ten: the softmax is not yet hard."""
  return np.float32(0.06 * np.random.RandomState(seed).randn(n, side, side, 1))


@pytest.mark.parametrize("labels", [[1, 0, 1, 2, 1, 0], [0] * 6, [5, 4, 5, 4, 5, 4]])
def test_densification(labels):
  x = faint(6)
  want = ref.densification(x, labels, 4.0)
  np.testing.assert_allclose(dense(x, np.array(labels)), want, rtol=1e-3, atol=1e-5)


def test_densification_is_exactly_zero_at_one_image_a_class():
  x, labels = 20 * faint(4), jnp.arange(4)
  value, grad = jax.value_and_grad(objectives.densification)(x, labels)
  assert value == 0
  assert not np.any(grad)


def test_equal_images_have_finite_gradients():
  """Two equal images have eigenvalues 2 |z|^2 and 0; equal pairs, and black ones, repeat them."""
  x = np.concatenate([np.repeat(faint(1), 4, 0), np.zeros((3, 32, 32, 1), np.float32)])
  two = np.asarray(objectives.eigenvalues(jnp.full((2, 2), float(np.sum(x[0] ** 2)))))
  np.testing.assert_allclose(two, [0, 2 * np.sum(x[0] ** 2)], atol=1e-5)
  labels = np.array([0, 0, 1, 1, 2, 2, 2])
  value, grad = jax.value_and_grad(objectives.densification)(jnp.asarray(x), jnp.asarray(labels))
  np.testing.assert_allclose(value, ref.densification(x, labels, 4.0), rtol=1e-4)
  assert np.isfinite(grad).all()


def test_gradient_of_densification():
  """d/dl of KL(q || p) at fixed q is p - q, and q is held fixed."""
  x, labels = faint(5), jnp.array([0, 1, 0, 0, 1])
  grad = jax.jit(jax.grad(objectives.densification))(x, labels)
  way = faint(5, 1)
  q, scores = {}, []
  for c in (0, 1):
    q[c] = np.exp(ref.log_softmax(spectrum(x[labels == c]) / 4))
  for e in (1e-3, -1e-3):
    y = np.float64(x) + e * way
    scores.append(-sum(q[c] @ ref.log_softmax(spectrum(y[labels == c])) for c in (0, 1)))
  np.testing.assert_allclose(jnp.vdot(grad, way), (scores[0] - scores[1]) / 2e-3, rtol=1e-3)


def spectrum(z):
  z = np.float64(z).reshape(len(z), -1)
  return np.linalg.eigvalsh(z @ z.T)


def test_equal_eigenvalues_differentiate_as_symmetric_functions():
  a = jnp.diag(jnp.array([2.0, 2.0, 5.0]))
  grad = jax.grad(lambda m: jnp.sum(objectives.eigenvalues(m) ** 3))(a)
  np.testing.assert_allclose(grad, 3 * a @ a, rtol=1e-5)  # the trace of the cube


# ---- flatness and the curriculum ----


def test_flatness():
  draws = np.random.RandomState(0)
  logits, slow, way = (4 * draws.randn(3, 5).astype(np.float32) for _ in range(3))
  flat = lambda x: objectives.flatness(jnp.asarray(x), jnp.asarray(slow))
  want = lambda x: ref.flatness(x, slow, 4.0)
  np.testing.assert_allclose(flat(logits), want(logits), rtol=1e-5)
  slope = (want(logits + 1e-4 * np.float64(way)) - want(logits - 1e-4 * np.float64(way))) / 2e-4
  np.testing.assert_allclose(jnp.vdot(jax.grad(flat)(logits), way), slope, rtol=1e-4)
  assert not np.any(jax.grad(lambda s: objectives.flatness(jnp.asarray(logits), s))(slow))


@pytest.mark.parametrize("curriculum", CURRICULA)
@pytest.mark.parametrize("milestone", [0.0, 0.5, 1.0])
def test_crop_scale(curriculum, milestone):
  got = [crop_scale(jnp.asarray(t), 40 * milestone, curriculum) for t in (0, 7, 19, 20, 39)]
  want = [ref.crop_scale(t, 40 * milestone, curriculum) for t in (0, 7, 19, 20, 39)]
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_traced_scale_of_one_leaves_the_image_whole(key):
  x = jnp.asarray(faint(2, side=8))

  @jax.jit
  def view(key, step):
    low = crop_scale(step, 40.0)
    return crops.random_resized_crop(key, x, scale=(low, 1.0), shared=True)

  np.testing.assert_allclose(view(jax.random.clone(key), 0), x, rtol=1e-6)
  assert not np.allclose(view(key, 39), x, atol=1e-3)
