"""Per-example quantities of networks and of functions, against jax.vmap of jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import as_float64, g1, g4

from jaxbackprop import Network, checkpoint, init, loss, per_example, stack
from jaxbackprop.graph import unformed
from jaxbackprop.per_example import asking, quantities
from jaxbackprop.per_example.fitting import most_examples

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
    return network, stack(init(network, keys[0], dtype)), x, y


@jax.jit
def by_autodiff(network, params, x, y):
    """∇Cᵢ with a first axis of m; norms and moments are then NumPy's on these, in float64."""

    def one(x, y):
        return jax.grad(loss, argnums=1)(network, params, x[:, None], y[:, None])

    return jax.vmap(one, in_axes=1)(x, y)


def asked(quantity, *options):
    """The quantity of a network as a function of (network, params, x, y), compiled."""

    def of(network, params, x, y):
        return jax.jit(quantity(network, *options))(params, (x, y))

    return of


def norms_of(gradients):
    squares = [np.sum(g.reshape(len(g), -1) ** 2, 1) for g in as_float64(gradients)]
    return np.sqrt(sum(squares))


def reduced(f, gradients):
    return jax.tree.map(lambda g: f(np.asarray(g).astype(np.float64)), gradients)


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_norms_are_those_of_one_gradient_an_example(case):
    network, *arguments = problem(*case)
    reference = by_autodiff(network, *arguments)
    ours = asked(per_example.gradients)(network, *arguments)
    assert g4(ours, reference)
    assert g1(ours, reference, network.depth)
    norms = asked(per_example.gradient_norms)(network, *arguments)
    assert g1(norms, norms_of(reference), network.depth, norms.dtype)


def right(network, *arguments):
    """Which moments and clipped means are those of one gradient an example."""
    reference = by_autodiff(network, *arguments)
    square, spread = (
        asked(f)(network, *arguments) for f in (per_example.second_moment, per_example.variance)
    )
    moment = reduced(lambda g: np.mean(g**2, 0), reference)
    gap = as_float64(spread), as_float64(reduced(lambda g: np.var(g, 0), reference))
    unit = jnp.finfo("float32").eps * 8 * (network.depth + 1)  # of the moment that it is less than
    norms = norms_of(reference)
    limit = float(np.median(norms))
    share = np.minimum(1, limit / norms)
    assert 0 < np.mean(share < 1) < 1
    clipped = asked(per_example.clipped_mean, limit)(network, *arguments)
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
    "a sum for the mean": (
        quantities,
        "means",
        lambda _: lambda sums, params, m: sums_of(params, sums),
    ),
    "δ of the mean cost": (
        asking,
        "outer_products",
        lambda products: lambda *a: [times(leaf, 1 / 9) for leaf in products(*a)],
    ),
    "inputs with 1 added": (
        asking,
        "outer_products",
        lambda products: lambda *a: [one_added(leaf) for leaf in products(*a)],
    ),
}


def sums_of(params, sums):
    return jax.tree.unflatten(jax.tree.structure(params), sums)


def times(leaf, factor):
    terms = [term._replace(ct=factor * term.ct) for term in leaf.terms]
    return leaf._replace(terms=terms, dense=None if leaf.dense is None else factor * leaf.dense)


def one_added(leaf):
    return leaf._replace(terms=[term._replace(kept=term.kept + 1) for term in leaf.terms])


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_moments_variances_and_clipped_means_are_rejected(fault, monkeypatch):
    module, name, wrong = FAULTS[fault]
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    found = right(*problem(*CASES[0]))
    assert not found["clipped_mean"]
    assert not found["second_moment"]


def test_a_clip_by_norms_without_the_biases_is_rejected(monkeypatch):
    def without(leaves):
        squares = list(map(unformed.squared_norms, leaves))
        return [
            0 * s if leaf.dense is not None else s for s, leaf in zip(squares, leaves, strict=True)
        ]

    monkeypatch.setattr(quantities, "_squares", without)
    found = right(*problem(*CASES[0]))
    assert found == {"second_moment": True, "variance": True, "clipped_mean": False}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_every_dtype_agrees(dtype, x64):
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3), dtype=dtype)
    reference = by_autodiff(network, *arguments)
    assert g1(asked(per_example.gradients)(network, *arguments), reference, network.depth)
    norms = asked(per_example.gradient_norms)(network, *arguments)
    assert norms.dtype == dtype
    assert g1(norms, norms_of(reference), network.depth, dtype)


def test_a_clip_above_every_norm_leaves_the_gradient():
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    reference = jax.jit(jax.grad(loss, argnums=1))(network, *arguments)
    assert g1(asked(per_example.clipped_mean, 1e6)(network, *arguments), reference, network.depth)


def test_the_clipped_mean_is_never_longer_than_the_limit_and_zero_gradients_stay_zero():
    network, params, x, y = problem("identity", "squared_error", "tanh", (5, 7, 3))
    y = network.sigma(2).value(jnp.zeros_like(y))
    params = jax.tree.map(jnp.zeros_like, params)  # the output is 0, and so is every error
    clipped = asked(per_example.clipped_mean, 0.1)(network, params, x, y)
    assert all(np.array_equal(leaf, np.zeros_like(leaf)) for leaf in jax.tree.leaves(clipped))
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    clipped = asked(per_example.clipped_mean, 1e-3)(network, *arguments)
    assert float(norms_of(jax.tree.map(lambda v: v[None], clipped))[0]) <= 1e-3 * (1 + 1e-6)


def test_the_noise_scale_is_unbiased_noise_over_unbiased_signal(x64):
    """Against the covariance matrix itself; the biased estimates are further away."""
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (3, 4, 2), 50, "float64")
    flat = np.concatenate(
        [g.reshape(50, -1) for g in as_float64(by_autodiff(network, *arguments))], axis=1
    )
    noise = np.trace(np.cov(flat, rowvar=False))
    signal = np.sum(flat.mean(0) ** 2) - noise / 50
    found = asked(per_example.gradient_noise_scale)(network, *arguments)
    np.testing.assert_allclose(found, (noise / signal, noise, signal), rtol=1e-10)
    biased = noise * 49 / 50, np.sum(flat.mean(0) ** 2)
    assert all(abs(b - f) > 1e-3 * f for b, f in zip(biased, found[1:], strict=True))


def test_squares_beyond_float16_neither_overflow_nor_clip_everything():
    network, params, x, y = problem("softmax", "cross_entropy", "relu", (5, 7, 3), dtype="float16")
    x = 100 * x
    reference = by_autodiff(network, *jax.tree.map(lambda v: v.astype("float32"), (params, x, y)))
    norms = norms_of(reference)
    assert norms.max() ** 2 > 65504
    np.testing.assert_allclose(
        asked(per_example.gradient_norms)(network, params, x, y), norms, rtol=0.02
    )
    clipped = asked(per_example.clipped_mean, 1.0)(network, params, x, y)
    assert 0.1 < norms_of(jax.tree.map(lambda v: v[None], clipped))[0] <= 1.01


def wrong_by_m(network, params, x, y):
    return per_example.gradient_norms(network)(params, (x, y)) / x.shape[1]


def without_biases(network, params, x, y):
    return jnp.sqrt(
        sum(
            jnp.sum(layer.W**2, (-2, -1))
            for layer in per_example.gradients(network)(params, (x, y))
        )
    )


def norm_of_the_mean(network, params, x, y):
    leaves = jax.tree.leaves(jax.grad(loss, argnums=1)(network, params, x, y))
    return jnp.full(x.shape[1], jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves)))


@pytest.mark.parametrize("wrong", [wrong_by_m, without_biases, norm_of_the_mean])
def test_wrong_norms_are_rejected(wrong):
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    reference = norms_of(by_autodiff(network, *arguments))
    assert not g1(jax.jit(wrong)(network, *arguments), reference, network.depth, "float32")


def test_norms_need_no_weight_gradient():
    """4 products for 2 layers less BP3's two and BP2's lowest: 2 forward, 1 back."""
    network, *arguments = problem("softmax", "cross_entropy", "tanh", (5, 7, 3))
    params, x, y = arguments
    lowered = jax.jit(per_example.gradient_norms(network)).lower(params, (x, y))
    assert lowered.compile().as_text().count(" dot(") == 3


def mlp(params, example):
    """The cost of one example, as the text's network has it."""
    x, y = example
    for l, (W, b) in enumerate(params):
        z = W @ x + b[:, 0]
        x = jnp.tanh(z) if l < len(params) - 1 else z
    return -jnp.sum(y * jax.nn.log_softmax(x))


def functional(m=6, dtype="float32"):
    """(function of one example, params, batch), and the same as a network."""
    network, params, x, y = problem("softmax", "cross_entropy", "tanh", (5, 7, 3), m, dtype)
    return mlp, params, (x.T, y.T), network


QUANTITIES = {
    "norms": per_example.gradient_norms,
    "squared norms": per_example.squared_norms,
    "gradients": per_example.gradients,
    "clipped": lambda f, **options: per_example.clipped_mean(f, 0.5, **options),
    "by leaf": lambda f, **options: per_example.clipped_mean(f, (0.3, 0.4), **options),
    "counted": lambda f, **options: per_example.clipped_mean(f, 0.5, counts=True, **options),
    "weighted": lambda f, **options: per_example.weighted_mean(f, jnp.arange(6.0), **options),
    "second moment": per_example.second_moment,
    "variance": per_example.variance,
    "noise scale": per_example.gradient_noise_scale,
}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_network_and_its_function_say_the_same_at_once_and_in_microbatches(quantity, x64):
    f, params, batch, network = functional(dtype="float64")
    ask = QUANTITIES[quantity]
    columns = [v.T for v in batch]
    wanted = jax.tree.leaves(jax.jit(ask(network))(params, tuple(columns)))
    answers = [jax.jit(ask(f, microbatch=size))(params, batch) for size in (None, 1, 4)]
    answers.append(jax.jit(ask(network, microbatch=4))(params, tuple(columns)))
    for found in map(jax.tree.leaves, answers):
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_a_tree_of_bounds_clips_each_part_by_its_own_norm(x64):
    f, params, batch, _ = functional(dtype="float64")
    gradients = jax.jit(jax.vmap(jax.grad(f), (None, 0)))(params, batch)
    bounds = (0.2, params[1]._replace(W=0.1, b=jnp.asarray(0.3)))
    found = jax.jit(per_example.clipped_mean(f, bounds))(params, batch)

    def clipped(bound, *leaves):
        norm = np.sqrt(sum(np.sum(np.reshape(g, (6, -1)) ** 2, 1) for g in leaves))
        return [np.tensordot(np.minimum(1, bound / norm), g, 1) / 6 for g in leaves]

    wanted = [*clipped(0.2, *gradients[0])]
    wanted += [*clipped(0.1, gradients[1].W), *clipped(0.3, gradients[1].b)]
    for ours, theirs in zip(jax.tree.leaves(found), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("m", [6, 9])  # few rows are summed in one pass, more as a product
def test_a_bad_example_is_left_out_of_a_clipped_mean_and_counted(m, x64):
    f, params, (x, y), _ = functional(m, "float64")
    bad, keep = (np.array(x), y), np.arange(m) != 2
    bad[0][2, 0] = np.nan
    found = jax.jit(per_example.clipped_mean(f, 0.5, counts=True))(params, bad)
    wanted = jax.jit(per_example.clipped_mean(f, 0.5))(params, (x[keep], y[keep]))
    for ours, theirs in zip(jax.tree.leaves(found.mean), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs * (m - 1) / m, rtol=1e-12)
    assert int(found.bad) == 1
    norms = jax.jit(per_example.gradient_norms(f))(params, bad)
    assert np.flatnonzero(~np.isfinite(norms)).tolist() == [2]
    assert int(found.clipped) == np.sum(np.asarray(norms) > 0.5)
    weighted = jax.jit(per_example.weighted_mean(f, keep.astype(float)))(params, bad)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(weighted))


def test_bad_input_is_named():
    f, params, (x, y), network = functional()

    def refuses(says, question, *arguments, error=ValueError):
        with pytest.raises(error, match=says):
            question(*arguments)

    norms = per_example.gradient_norms
    refuses("differ in their number of examples", norms(f), params, (x, y[:2]))
    refuses("differ in their number of examples", norms(network), params, (x.T, y[:2].T))
    refuses("an axis of examples", norms(f), params, (x, 1.0))
    refuses("no arrays", norms(f), params, ())
    refuses("0 examples", norms(f), params, (x[:0], y[:0]))
    refuses(r"the batch of a network is \(x, y\)", norms(network), params, x.T)
    refuses("y has shape", norms(network), params, (x.T, y.T[:1]))
    refuses("scalar-output", norms(lambda p, e: e[0] @ p[0].W.T), params, (x, y), error=TypeError)
    refuses(
        "requires real", norms(f), jax.tree.map(lambda p: p > 0, params), (x, y), error=TypeError
    )
    refuses("complex64", norms(f), jax.tree.map(lambda p: p + 0j, params), (x, y), error=TypeError)
    refuses("at least two", per_example.gradient_noise_scale(f), params, (x[:1], y[:1]))
    refuses("one weight for each", per_example.weighted_mean(f, jnp.ones(3)), params, (x, y))
    refuses("microbatch is 0", norms(f, microbatch=0), params, (x, y))
    for bound in (0.0, -1.0, float("nan"), jnp.zeros(()), np.float32(-1), "1", None, 1j):
        refuses("max_norm", per_example.clipped_mean(f, bound), params, (x, y))
    refuses(r"one number", per_example.clipped_mean(f, jnp.ones(2)), params, (x, y))
    refuses(r"no prefix", per_example.clipped_mean(f, (1.0, 1.0, 1.0)), params, (x, y))
    refuses(r"max_norm\[1\] is -2", per_example.clipped_mean(f, (1.0, -2)), params, (x, y))


def test_a_traced_bound_that_is_not_positive_gives_nan():
    f, params, batch, _ = functional()
    clip = jax.jit(lambda bound: per_example.clipped_mean(f, bound)(params, batch))
    for bound in (0.0, -1.0, np.nan):
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(clip(bound)))


def test_one_example_has_no_variance():
    f, params, (x, y), _ = functional()
    spread = jax.jit(per_example.variance(f))(params, (x[:1], y[:1]))
    assert not any(np.any(v) for v in jax.tree.leaves(spread))


# --- in a number of bytes ---


def temporary(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("columns", [False, True])
def test_within_a_number_of_bytes_no_program_takes_more_and_the_numbers_stay(columns):
    network, params, x, y = problem("softmax", "cross_entropy", "tanh", (16, 24, 4), m=48)
    if columns:
        f, batch = network, (x, y)
    else:
        batch = x.T, y.T
        f = lambda params, example: loss(network, params, *(v[:, None] for v in example))  # noqa: E731
    norms = per_example.gradient_norms
    whole, one = (
        temporary(norms(f), params, batch),
        temporary(norms(f, microbatch=1), params, batch),
    )
    assert one < whole
    for room in (one, (one + whole) // 2, whole):
        within = norms(f, checkpoint=checkpoint.within(room))
        assert temporary(within, params, batch) <= room
        np.testing.assert_allclose(within(params, batch), norms(f)(params, batch), rtol=1e-5)
    with pytest.raises(ValueError, match=f"one example at a time needs {one} bytes"):
        norms(f, checkpoint=checkpoint.within(one - 1))(params, batch)
    with pytest.raises(ValueError, match=r"does not see the batch of a jax\.vmap"):
        jax.vmap(norms(f, checkpoint="1MiB"), (None, 0))(params, [v[None] for v in batch])


@pytest.mark.parametrize("bend", [1.0, 0.5, 2.0])
def test_the_greatest_number_of_examples_is_found_in_few_tries(bend):
    """Whatever the course of the bytes, as long as they rise; a search one by one takes up to m."""
    tried = set()

    def needed(size):
        tried.add(size)
        return 1000 + int(50 * size**bend)

    for room in (1060, 1300, 2000, 4000, 10**6):
        greatest = max(size for size in range(1, 129) if needed(size) <= room)
        tried.clear()
        assert 0.8 * greatest - 1 <= most_examples(needed, 128, room) <= greatest
        assert len(tried) <= 12
