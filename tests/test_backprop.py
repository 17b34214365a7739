"""The manual gradients are jax.grad's, by gates G1 to G4, in every setting that users meet."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from gates import absolute_pass, as_float64, g1, g2, g3, g4
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_memory import let_go_if_full

from jaxbackprop import Layer, Network, backprop, backward, forward, init, loss, stack
from jaxbackprop.activations import ACTIVATIONS

ELEMENTWISE = [name for name in ACTIVATIONS if name not in ("softmax", "relu_one")]
ENDINGS = [
    *((name, "squared_error") for name in ELEMENTWISE),
    ("sigmoid", "binary_cross_entropy"),
    ("softmax", "cross_entropy"),
]


def example(network, batch=7, dtype="float32", seed=0):
    """Random (params, x, y) with biases that are not zero and targets that the loss allows."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = stack(init(network, keys[0], dtype))
    biases = jax.random.split(keys[3], len(params))
    params = tuple(
        Layer(layer.W, 0.1 * jax.random.normal(key, layer.b.shape, dtype))
        for layer, key in zip(params, biases, strict=True)
    )
    x = jax.random.normal(keys[1], (network.sizes[0], batch), dtype)
    y = jax.random.uniform(keys[2], (network.sizes[-1], batch), dtype)
    if network.loss == "cross_entropy":
        y = jax.nn.softmax(4 * y, axis=0)
    return params, x, y


automatic = jax.jit(jax.value_and_grad(loss, argnums=1))
manual = jax.jit(backprop)


def up(tree):
    return jax.tree.map(lambda leaf: leaf.astype("float64"), tree)


CASES = [
    *((hidden, *ending, "float32") for hidden in ELEMENTWISE for ending in ENDINGS[-2:]),
    *(("tanh", *ending, "float32") for ending in ENDINGS[:-2]),
    *((hidden, "sigmoid", "squared_error", "float64") for hidden in ELEMENTWISE),
    *(("gelu", *ending, "float64") for ending in ENDINGS[-2:]),
]


@pytest.mark.parametrize(("hidden", "output", "loss_name", "dtype"), CASES)
def test_every_activation_and_loss_equals_jax_grad(hidden, output, loss_name, dtype, x64):
    network = Network((5, 8, 6, 4), hidden, output, loss_name)
    params, x, y = example(network, dtype=dtype)
    cost, gradients = manual(network, params, x, y)
    ĉost, reference = automatic(network, params, x, y)
    assert g4(gradients, reference)
    assert cost == ĉost
    assert g1(gradients, reference, network.depth)
    if dtype == "float32":
        assert g3(gradients, reference, automatic(network, up(params), up(x), up(y))[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("output", "loss_name"), [ENDINGS[0], *ENDINGS[-2:]])
@pytest.mark.parametrize("hidden", ["tanh", "relu", "gelu"])
def test_half_precision_equals_jax_grad(hidden, output, loss_name, dtype, x64):
    network = Network((5, 8, 6, 4), hidden, output, loss_name)
    params, x, y = example(network, dtype=dtype)
    gradients, reference = manual(network, params, x, y)[1], automatic(network, params, x, y)[1]
    assert g4(gradients, reference)
    assert g1(gradients, reference, network.depth)
    assert g3(gradients, reference, automatic(network, up(params), up(x), up(y))[1])


@pytest.mark.parametrize("hidden", ["sigmoid", "tanh", "relu", "identity"])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (4, 200, 1), (2, 3, 4, 5, 6, 5, 4, 3, 2)])
def test_equals_the_chapters_algorithm_in_numpy(hidden, sizes, x64):
    network = Network(sizes, hidden, "sigmoid")
    params, x, y = example(network, dtype="float64")
    cost, gradients = manual(network, params, x, y)
    ĉost, reference = oracle.squared_error_backprop(params, x, np.asarray(y), hidden, "sigmoid")
    np.testing.assert_allclose(cost, ĉost, rtol=1e-14)
    reference = tuple(Layer(*map(jnp.asarray, layer)) for layer in reference)
    assert g1(gradients, reference, network.depth)


@pytest.mark.parametrize("hidden", ["sigmoid", "tanh", "gelu", "softplus"])
def test_equals_central_differences(hidden, x64):
    network = Network((3, 4, 2), hidden, "softmax", "cross_entropy")
    params, x, y = example(network, dtype="float64")
    _, gradients = manual(network, params, x, y)
    leaves, tree = jax.tree.flatten(params)
    h = 1e-5
    for k, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            costs = [
                loss(
                    network, jax.tree.unflatten(tree, [*leaves[:k], moved, *leaves[k + 1 :]]), x, y
                )
                for moved in (leaf.at[index].add(h), leaf.at[index].add(-h))
            ]
            slope = (costs[0] - costs[1]) / (2 * h)
            assert abs(jax.tree.leaves(gradients)[k][index] - slope) < 1e-9


@pytest.mark.parametrize("hidden", ["sigmoid", "tanh", "relu", "gelu"])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 32])
def test_each_component_is_right_to_rounding_at_every_depth(hidden, depth):
    network = Network((6,) * (depth + 1), hidden, "sigmoid")
    params, x, y = example(network)
    params = tuple(Layer(W, b) for layer in params for W, b in _layers(layer))
    gradients, reference = manual(network, params, x, y)[1], automatic(network, params, x, y)[1]
    bound = absolute_pass(network, params, x, y)
    assert g1(gradients, reference, depth)
    assert g2(gradients, reference, bound, terms=x.shape[1] + sum(network.sizes))


def _layers(layer):
    return zip(layer.W, layer.b, strict=True) if layer.W.ndim == 3 else [layer]


@pytest.mark.parametrize("hidden", ["tanh", "relu", "gelu", "precise_sigmoid"])
@pytest.mark.parametrize("first", [6, 3])
def test_a_stack_equals_jax_grad_of_the_same_scan(hidden, first, x64):
    network = Network((first, *[6] * 24, 2), hidden, "softmax", "cross_entropy")
    params, x, y = example(network, dtype="float64")
    assert any(layer.W.ndim == 3 for layer in params)
    gradients, reference = manual(network, params, x, y)[1], automatic(network, params, x, y)[1]
    assert g4(gradients, reference)
    assert g1(gradients, reference, network.depth)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 17, 64, 200]), min_size=2, max_size=5),
    batch=st.sampled_from([1, 2, 5, 64, 256]),
    hidden=st.sampled_from([name for name in ELEMENTWISE if "precise" not in name]),
    ending=st.sampled_from([e for e in ENDINGS if "precise" not in e[0]]),
    seed=st.integers(0, 2**31 - 1),
)
def test_random_networks_obey_the_gates(sizes, batch, hidden, ending, seed):
    let_go_if_full()
    network = Network(sizes, hidden, *ending)
    with jax.enable_x64(True):
        params, x, y = example(network, batch, "float64", seed)
        gradients, reference = (
            f(network, params, x, y)[1] for f in (backprop, jax.value_and_grad(loss, argnums=1))
        )
        assert g4(gradients, reference)
        # With one output, softmax is 1 and its gradient rounding on both sides: nothing to compare.
        if not (ending[0] == "softmax" and sizes[-1] == 1):
            bound = sum(np.abs(leaf).sum() for leaf in as_float64(reference))
            near = g1(gradients, reference, network.depth) or bound < 1e-13
            assert near or _within_rounding_of_the_summands(network, params, x, y, gradients)


def _within_rounding_of_the_summands(network, params, x, y, gradients):
    """G1 where the examples' gradients cancel: a sum is rounded as its summands are large."""

    def one(x, y):
        return jax.grad(loss, argnums=1)(network, params, x[:, None], y[:, None])

    each = jax.vmap(one, 1)(x, y)
    unit = 8 * np.finfo(np.float64).eps * (network.depth + 1)
    return all(
        np.linalg.norm(found - own.mean(0)) <= unit * np.linalg.norm(np.abs(own).mean(0))
        for found, own in zip(as_float64(gradients), as_float64(each), strict=True)
    )


def test_eager_jit_vmap_and_scan_agree():
    network = Network((4, 6, 3), "tanh", "softmax", "cross_entropy")
    several = [example(network, seed=seed) for seed in range(3)]
    eager = [backprop(network, *one) for one in several]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    mapped = jax.vmap(lambda *one: backprop(network, *one))(*together)
    _, scanned = jax.lax.scan(lambda _, one: (None, backprop(network, *one)), None, together)
    jitted = [manual(network, *one) for one in several]
    for found in (mapped, scanned, jax.tree.map(lambda *leaves: jnp.stack(leaves), *jitted)):
        for i, expected in enumerate(eager):
            assert g1(jax.tree.map(lambda leaf, i=i: leaf[i], found), expected, network.depth)


def test_a_second_call_of_the_same_shapes_traces_nothing():
    network = Network((4, 6, 3))
    traced = jax.jit(chex.assert_max_traces(backprop, n=1), static_argnums=0)
    for seed in range(3):
        traced(Network((4, 6, 3)), *example(network, seed=seed))


@pytest.mark.parametrize("sizes", [(4, 6, 3), (4, *[6] * 20, 3)])
def test_lowers_for_every_platform_without_its_hardware(sizes):
    network = Network(sizes, "gelu", "softmax", "cross_entropy")
    shapes = jax.eval_shape(lambda: example(network))
    exported = jax.export.export(
        jax.jit(lambda *one: backprop(network, *one)), platforms=["cpu", "cuda", "tpu"]
    )(*shapes)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_the_backward_pass_is_pure_and_leaves_its_arguments_alone():
    network = Network((4, 6, 3))
    params, x, y = example(network)
    trace = forward(network, params, x)
    before = jax.tree.map(np.array, (params, trace))
    first, second = (backward(network, params, trace, y) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, before, (params, trace))


def test_nan_in_the_data_reaches_every_gradient_that_it_reaches_in_jax():
    network = Network((4, 6, 3), "relu")
    params, x, y = example(network)
    x = x.at[0, 0].set(jnp.nan)
    assert g4(manual(network, params, x, y)[1], automatic(network, params, x, y)[1])


WRONG_PASSES = {
    "σ′ of the wrong layer": lambda t: t._replace(
        activations=(*t.activations[:-1], t.activations[-2])
    ),
    "activations off by one layer": lambda t: t._replace(
        activations=(t.activations[0], t.activations[2], t.activations[1], t.activations[3])
    ),
    "a trace of other data": lambda t: jax.tree.map(lambda a: a[:, ::-1], t),
    "activations in place of the input": lambda t: t._replace(
        activations=(t.activations[1], *t.activations[1:])
    ),
}


@pytest.mark.parametrize("name", WRONG_PASSES)
def test_a_backward_pass_from_the_wrong_trace_is_rejected(name):
    network = Network((4, 4, 4, 4), "tanh")
    params, x, y = example(network)
    reference = automatic(network, params, x, y)[1]
    trace = forward(network, params, x)
    assert g1(backward(network, params, trace, y).gradients, reference, network.depth)
    wrong = backward(network, params, WRONG_PASSES[name](trace), y).gradients
    assert not g1(wrong, reference, network.depth)
