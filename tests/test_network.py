"""The network: what may be asked for, how it begins, and its two forms of parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import Layer, Network, backprop, backward, forward, init, loss, stack, unstack
from jaxbackprop.activations import Activation

KEY = jax.random.key(0)
DEEP = Network((5, *[4] * 20, 3), hidden="tanh")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (3,)}, "input and an output"),
        ({"sizes": (3, 0, 1)}, r"sizes\[1\] is 0"),
        ({"sizes": (3, -2, 1)}, r"sizes\[1\] is -2"),
        ({"sizes": (3, 2.5, 1)}, r"sizes\[1\] is 2.5"),
        ({"sizes": (3, True)}, r"sizes\[1\] is True"),
        ({"sizes": (3, "4")}, r"sizes\[1\] is '4'"),
        ({"sizes": (3, 1), "hidden": "rellu"}, "hidden='rellu' is unknown: did you mean 'relu'"),
        ({"sizes": (3, 1), "output": 7}, "output=7 is unknown: one of sigmoid"),
        ({"sizes": (3, 1), "loss": "mse"}, "loss='mse' is unknown: one of squared_error"),
        (
            {"sizes": (3, 1), "loss": "cross_entropy"},
            "needs output='softmax', got output='sigmoid'",
        ),
        ({"sizes": (3, 1), "output": "softmax"}, "output='softmax' needs loss='cross_entropy'"),
        ({"sizes": (3, 2, 1), "hidden": "softmax"}, "softmax can only be the output"),
        (
            {"sizes": (3, 1), "output": "tanh", "loss": "binary_cross_entropy"},
            "needs output='sigmoid', got output='tanh'",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_one_sentence(options, message, untyped):
    with pytest.raises(ValueError, match=message):
        Network(**options)


def test_a_network_is_static_hashable_and_passes_through_jit(untyped):
    network = Network([2, 3, np.int64(1)])
    assert network.sizes == (2, 3, 1)
    assert network.depth == 2
    assert hash(network) == hash(Network((2, 3, 1)))
    assert jax.tree.leaves(network) == []
    assert jax.jit(lambda network: network)(network) == network


def test_an_activation_of_ones_own_takes_part():
    square = Activation("square", lambda z: z * z, lambda z, a: 2 * z, from_a=False)
    network = Network((2, 3, 1), hidden=square)
    params = init(network, KEY)
    x, y = jnp.ones((2, 4)), jnp.zeros((1, 4))
    reference = jax.grad(loss, argnums=1)(network, params, x, y)
    jax.tree.map(
        lambda g, r: np.testing.assert_allclose(g, r, rtol=1e-5, atol=1e-8),
        backprop(network, params, x, y)[1],
        reference,
    )


@pytest.mark.parametrize(
    ("hidden", "scheme", "variance"),
    [
        ("relu", None, 2 / 300),
        ("gelu", None, 2 / 300),
        ("tanh", None, 2 / 500),
        ("sigmoid", None, 2 / 500),
        ("sigmoid", "he", 2 / 300),
        ("relu", "xavier", 2 / 500),
        ("relu", "normal", 1),
    ],
)
def test_init_draws_the_variance_that_its_scheme_names(hidden, scheme, variance):
    first, _ = init(Network((300, 200, 1), hidden), KEY, scheme=scheme)
    # 60,000 draws: the sample variance has a standard error of 0.6 %.
    np.testing.assert_allclose(jnp.var(first.W), variance, rtol=0.03)
    assert abs(jnp.mean(first.W)) < 0.02 * variance**0.5
    assert not first.b.any()


def test_init_gives_each_layer_its_own_draw():
    a, b = init(Network((3, 3, 3)), KEY)
    assert not np.array_equal(a.W, b.W)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_init_has_the_dtype_asked_for(dtype):
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(init(DEEP, KEY, dtype))} == {dtype}


def test_init_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="scheme='hee' is unknown: did you mean 'he'"):
        init(DEEP, KEY, scheme="hee")
    with pytest.raises(ValueError, match="dtype is int32"):
        init(DEEP, KEY, "int32")


def test_a_long_run_of_equal_layers_is_one_stack():
    """From 100 on by itself, where a program of layers one by one takes seconds to compile."""

    def shapes(depth):
        network = Network((5, *[4] * (depth + 1), 3), "tanh")
        return [layer.W.shape for layer in jax.eval_shape(lambda: init(network, KEY))]

    assert shapes(99) == [(4, 5), *[(4, 4)] * 99, (3, 4)]
    assert shapes(100) == [(4, 5), (100, 4, 4), (3, 4)]


def test_a_stack_has_the_same_numbers_as_its_layers_one_by_one():
    network = Network((5, *[4] * 101, 3), "tanh")
    (_, together, _), keys = init(network, KEY), jax.random.split(KEY, network.depth)
    expected = jax.random.normal(keys[7], (4, 4)) * math.sqrt(2 / 8)
    np.testing.assert_allclose(together.W[6], expected, rtol=1e-6)


def test_stack_and_unstack_undo_each_other():
    layers = init(DEEP, KEY)
    params = stack(layers)
    assert [layer.W.shape for layer in params] == [(4, 5), (19, 4, 4), (3, 4)]
    assert [layer.W.shape for layer in layers] == [(4, 5), *[(4, 4)] * 19, (3, 4)]
    jax.tree.map(np.testing.assert_array_equal, unstack(params), layers)
    jax.tree.map(np.testing.assert_array_equal, stack(params), params)


def test_the_output_layer_is_never_stacked():
    params = stack(init(Network((4,) * 21), KEY))
    assert [layer.W.shape for layer in params] == [(19, 4, 4), (4, 4)]


@pytest.mark.parametrize("hidden", ["tanh", "gelu", "precise_sigmoid"])
def test_both_forms_compute_the_same(hidden):
    network = Network(DEEP.sizes, hidden)
    params = stack(init(network, KEY))
    x, y = jax.random.normal(KEY, (5, 6)), jax.random.uniform(KEY, (3, 6))
    stacked, plain = (backprop(network, p, x, y) for p in (params, unstack(params)))
    np.testing.assert_allclose(stacked[0], plain[0], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9),
        unstack(stacked[1]),
        plain[1],
    )
    deltas = backward(network, params, forward(network, params, x), y).deltas
    plain_deltas = backward(
        network, unstack(params), forward(network, unstack(params), x), y
    ).deltas
    np.testing.assert_allclose(deltas[1], jnp.stack(plain_deltas[1:-1]), rtol=1e-4, atol=1e-9)


def test_the_program_does_not_grow_with_depth():
    def equations(depth):
        network = Network((4,) * (depth + 1), "tanh")
        params = jax.eval_shape(lambda: init(network, KEY))
        x = jax.ShapeDtypeStruct((4, 3), "float32")
        return len(str(jax.make_jaxpr(backprop)(network, params, x, x)).splitlines())

    assert equations(102) == equations(400)


GOOD = init(Network((5, 4, 3)), KEY)
X, Y = jnp.ones((5, 6)), jnp.zeros((3, 6))
TWO = Network((5, 4, 3))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (jnp.ones((6, 5)), Y, r"x has shape \(6, 5\), expected \(5, m\)"),
        (jnp.ones(5), Y, r"x has shape \(5,\), expected \(5, m\)"),
        (jnp.ones((5, 0)), Y, "the batch is empty"),
        (jnp.ones((5, 6), "uint8"), Y, "x is uint8, the parameters are float32: cast"),
        (jnp.ones((5, 6), "bfloat16"), Y, "x is bfloat16, the parameters are float32"),
        (X, jnp.zeros(6), r"y has shape \(6,\), the output has shape \(3, 6\); .*one_hot"),
        (X, jnp.zeros((1, 6)), r"y has shape \(1, 6\), the output has shape \(3, 6\)"),
        (X, jnp.zeros((3, 6), "int32"), "y is int32, the output is float32"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_broadcasts(x, y, message, untyped):
    with pytest.raises(ValueError, match=message):
        backprop(TWO, GOOD, x, y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ((), "params have 0 layers, the network has 2"),
        (GOOD[:1], "params have 1 layers, the network has 2"),
        (GOOD[::-1], r"params\[0\].W has shape \(3, 4\), expected \(4, 5\) for layer 1"),
        (
            (GOOD[0], Layer(GOOD[1].W, jnp.zeros((1, 1)))),
            r"params\[1\].b has shape \(1, 1\), expected \(3, 1\)",
        ),
        (
            (GOOD[0], Layer(GOOD[1].W.astype("bfloat16"), GOOD[1].b)),
            r"params\[1\].W is bfloat16, params\[0\].W is float32",
        ),
    ],
)
def test_parameters_of_another_network_are_refused_by_entry(params, message, untyped):
    with pytest.raises(ValueError, match=message):
        backprop(TWO, params, X, Y)
