"""Per-example quantities against jax.vmap of jax.grad, one gradient an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import as_float64, g1, g4

from jaxbackprop import Network, init, loss, per_example

SIZES = [(5, 7, 3), (4, 3), (6, 5, 4, 3), (5, *[6] * 19, 3)]  # the last one has a stack
CASES = [("softmax", "cross_entropy", "tanh", sizes) for sizes in SIZES]
CASES += [
    ("sigmoid", "squared_error", "gelu", SIZES[2]),
    ("sigmoid", "binary_cross_entropy", "relu", SIZES[0]),
    ("identity", "squared_error", "sigmoid", SIZES[3]),
]


def problem(output, cost, hidden, sizes, m=9, dtype="float32"):
    network = Network(sizes, hidden, output, cost)
    keys = jax.random.split(jax.random.key(len(sizes)), 3)
    x = jax.random.normal(keys[1], (sizes[0], m), dtype)
    y = jax.nn.softmax(jax.random.normal(keys[2], (sizes[-1], m), dtype), axis=0)
    return network, init(network, keys[0], dtype), x, y


def by_autodiff(network, params, x, y):
    """∇Cᵢ with a first axis of m; norms and moments are then NumPy's on these, in float64."""

    def one(x, y):
        return jax.grad(loss, argnums=1)(network, params, x[:, None], y[:, None])

    return jax.vmap(one, in_axes=1)(x, y)


def norms_of(gradients):
    squares = [np.sum(g.reshape(len(g), -1) ** 2, 1) for g in as_float64(gradients)]
    return np.sqrt(sum(squares))


def reduced(f, gradients):
    return jax.tree.map(lambda g: f(np.asarray(g).astype(np.float64)), gradients)


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_norms_are_those_of_one_gradient_an_example(case):
    network, *arguments = problem(*case)
    reference = by_autodiff(network, *arguments)
    ours = jax.jit(per_example.gradients)(network, *arguments)
    assert g4(ours, reference)
    assert g1(ours, reference, network.depth)
    norms = jax.jit(per_example.gradient_norms)(network, *arguments)
    assert g1(norms, norms_of(reference), network.depth, norms.dtype)


def right(network, *arguments):
    """Which moments and clipped means are those of one gradient an example."""
    reference = by_autodiff(network, *arguments)
    square, spread = (
        jax.jit(lambda *args, f=f: f(network, *args))(*arguments)
        for f in (per_example.second_moment, per_example.variance)
    )
    moment = reduced(lambda g: np.mean(g**2, 0), reference)
    gap = as_float64(spread), as_float64(reduced(lambda g: np.var(g, 0), reference))
    unit = jnp.finfo("float32").eps * 8 * (network.depth + 1)  # of the moment that it is less than
    norms = norms_of(reference)
    limit = float(np.median(norms))
    share = np.minimum(1, limit / norms)
    assert 0 < np.mean(share < 1) < 1
    clipped = jax.jit(lambda *args: per_example.clipped_mean(network, *args, limit))(*arguments)
    expected = reduced(lambda g: np.tensordot(share, g, 1) / len(share), reference)
    return {
        "second_moment": g1(square, moment, network.depth, "float32"),
        "variance": all(
            np.linalg.norm(ours - theirs) <= unit * np.linalg.norm(whole)
            for ours, theirs, whole in zip(*gap, as_float64(moment), strict=True)
        ),
        "clipped_mean": g1(clipped, expected, network.depth, "float32"),
    }


@pytest.mark.parametrize("case", CASES)
def test_moments_and_clipped_means_are_those_of_one_gradient_an_example(case):
    assert all(right(*problem(*case)).values())


FAULTS = {
    "a sum for the mean": ("_mean", lambda mean: lambda delta, a: scaled(mean(delta, a), 9)),
    "δ of the mean cost": ("_columns", lambda columns: lambda *a: scaled(columns(*a), 1 / 9)),
    "inputs with 1 added": ("_mean", lambda mean: lambda delta, a: mean(delta, 1 + a)),
}


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_moments_variances_and_clipped_means_are_rejected(fault, monkeypatch):
    name, wrong = FAULTS[fault]
    monkeypatch.setattr(per_example, name, wrong(getattr(per_example, name)))
    assert not any(right(*problem(*CASES[0])).values())


def test_a_clip_by_norms_without_the_biases_is_rejected(monkeypatch):
    def without(delta, a):
        return jnp.sum(delta**2, -2) * jnp.sum(a**2, -2)

    monkeypatch.setattr(per_example, "_squared_norms", without)
    found = right(*problem(*CASES[0]))
    assert found == {"second_moment": True, "variance": True, "clipped_mean": False}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_every_dtype_agrees(dtype, x64):
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3), dtype=dtype)
    reference = by_autodiff(network, *arguments)
    assert g1(per_example.gradients(network, *arguments), reference, network.depth)
    norms = per_example.gradient_norms(network, *arguments)
    assert norms.dtype == dtype
    assert g1(norms, norms_of(reference), network.depth, dtype)


def test_a_clip_above_every_norm_leaves_the_gradient():
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    reference = jax.grad(loss, argnums=1)(network, *arguments)
    assert g1(per_example.clipped_mean(network, *arguments, 1e6), reference, network.depth)


def test_the_clipped_mean_is_never_longer_than_the_limit_and_zero_gradients_stay_zero():
    network, params, x, y = problem("identity", "squared_error", "tanh", (5, 7, 3))
    y = network.sigma(2).value(jnp.zeros_like(y))
    params = jax.tree.map(jnp.zeros_like, params)  # the output is 0, and so is every error
    clipped = per_example.clipped_mean(network, params, x, y, 0.1)
    assert all(np.array_equal(leaf, np.zeros_like(leaf)) for leaf in jax.tree.leaves(clipped))
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    clipped = per_example.clipped_mean(network, *arguments, 1e-3)
    assert float(norms_of(jax.tree.map(lambda v: v[None], clipped))[0]) <= 1e-3 * (1 + 1e-6)


def test_the_noise_scale_is_unbiased_noise_over_unbiased_signal(x64):
    """Against the covariance matrix itself; the biased estimates are further away."""
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (3, 4, 2), 50, "float64")
    flat = np.concatenate(
        [g.reshape(50, -1) for g in as_float64(by_autodiff(network, *arguments))], axis=1
    )
    noise = np.trace(np.cov(flat, rowvar=False))
    signal = np.sum(flat.mean(0) ** 2) - noise / 50
    found = per_example.gradient_noise_scale(network, *arguments)
    np.testing.assert_allclose(found, (noise / signal, noise, signal), rtol=1e-10)
    biased = noise * 49 / 50, np.sum(flat.mean(0) ** 2)
    assert all(abs(b - f) > 1e-3 * f for b, f in zip(biased, found[1:], strict=True))


def test_squares_beyond_float16_neither_overflow_nor_clip_everything():
    network, params, x, y = problem("softmax", "cross_entropy", "relu", (5, 7, 3), dtype="float16")
    x = 100 * x
    reference = by_autodiff(network, *jax.tree.map(lambda v: v.astype("float32"), (params, x, y)))
    norms = norms_of(reference)
    assert norms.max() ** 2 > 65504
    np.testing.assert_allclose(per_example.gradient_norms(network, params, x, y), norms, rtol=0.02)
    clipped = per_example.clipped_mean(network, params, x, y, 1.0)
    assert 0.1 < norms_of(jax.tree.map(lambda v: v[None], clipped))[0] <= 1.01


def wrong_by_m(network, params, x, y):
    return per_example.gradient_norms(network, params, x, y) / x.shape[1]


def without_biases(network, params, x, y):
    return jnp.sqrt(
        sum(jnp.sum(layer.W**2, (-2, -1)) for layer in per_example.gradients(network, params, x, y))
    )


def norm_of_the_mean(network, params, x, y):
    leaves = jax.tree.leaves(jax.grad(loss, argnums=1)(network, params, x, y))
    return jnp.full(x.shape[1], jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves)))


@pytest.mark.parametrize("wrong", [wrong_by_m, without_biases, norm_of_the_mean])
def test_wrong_norms_are_rejected(wrong):
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    reference = norms_of(by_autodiff(network, *arguments))
    assert not g1(wrong(network, *arguments), reference, network.depth, "float32")


def test_norms_need_no_weight_gradient():
    """4 products for 2 layers less BP3's two and BP2's lowest: 2 forward, 1 back."""
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    lowered = jax.jit(per_example.gradient_norms).lower(network, *arguments)
    assert lowered.compile().as_text().count(" dot(") == 3


def test_bad_input_is_named():
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    with pytest.raises(ValueError, match="max_norm is 0"):
        per_example.clipped_mean(network, *arguments, 0.0)
    params, x, y = arguments
    with pytest.raises(ValueError, match="at least two examples"):
        per_example.gradient_noise_scale(network, params, x[:, :1], y[:, :1])
    with pytest.raises(ValueError, match="y has shape"):
        per_example.gradient_norms(network, params, x, y[:1])
