"""The one seam of the backward pass, between BP2 and its use; and feedback in place of Wᵀ.

The oracle is the chapter's loop in NumPy, with the change written into it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import g1

from jaxbackprop import Layer, Network, backward, forward, init, stack, unstack

SIZES = [(4, 6, 5, 3), (4, *[6] * 18, 3)]  # the second has a stack


def problem(sizes):
    network = Network(sizes, "tanh", "identity", "squared_error")
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (jax.random.normal(keys[k], (sizes[-k + 1], 7)) for k in (1, 2))
    return network, stack(init(network, keys[0])), x, y


def by_numpy(params, x, y, use, weights=None):
    """∂C/∂W, ∂C/∂b with δ replaced by use(l, δ) as soon as it is there."""
    layers = [[np.asarray(leaf, float) for leaf in layer] for layer in unstack(params)]
    back = [W for W, _ in layers] if weights is None else weights
    activations, L = [np.asarray(x, float)], len(layers)
    for l, (W, b) in enumerate(layers, 1):
        z = W @ activations[-1] + b
        activations.append(z if l == L else np.tanh(z))
    delta, gradients = use(L, activations[-1] - np.asarray(y, float)), []
    for l in range(L, 0, -1):
        mean = delta.sum(1, keepdims=True) / x.shape[1]
        gradients.insert(0, Layer(delta @ activations[l - 1].T / x.shape[1], mean))
        if l > 1:
            delta = use(l - 1, (back[l - 1].T @ delta) * (1 - activations[l - 1] ** 2))
    return gradients


# Each is the few lines that a user writes; NumPy and jax.numpy read the same.
SEAMS = {
    "nothing": lambda l, delta: delta,
    "clipping": lambda l, delta: jnp.clip(delta, -0.1, 0.1),
    "freezing layer 2": lambda l, delta: jnp.where(l == 2, 0, delta),
    "a scale for each layer": lambda l, delta: delta * l,
    "noise": lambda l, delta: (
        delta + 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(5), l), delta.shape)
    ),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", SEAMS)
def test_the_seam_stands_between_each_error_and_its_use(name, sizes):
    network, params, x, y = problem(sizes)
    use = SEAMS[name]
    ours = jax.jit(
        lambda params: backward(network, params, forward(network, params, x), y, seam=use)
    )(params)
    expected = by_numpy(params, x, y, lambda l, d: np.asarray(use(l, jnp.asarray(d, "float32"))))
    got = unstack(ours.gradients)
    assert g1(got, expected, network.depth + 2, "float32")
    if name != "nothing":
        plain = by_numpy(params, x, y, SEAMS["nothing"])
        assert not g1(got, plain, network.depth + 2, "float32")


def test_a_probe_sees_every_layer_from_the_last_to_the_first():
    network, params, x, y = problem(SIZES[1])
    seen = []

    def probe(l, delta):
        jax.debug.callback(lambda l: seen.append(int(l)), l, ordered=True)
        return delta

    backward(network, params, forward(network, params, x), y, seam=probe)
    jax.effects_barrier()
    assert seen == list(range(network.depth, 0, -1))


@pytest.mark.parametrize("sizes", SIZES)
def test_feedback_stands_in_for_the_weights_in_bp2_alone(sizes):
    network, params, x, y = problem(sizes)
    random = stack(init(network, jax.random.key(9)))
    feedback = tuple(layer.W for layer in random)
    ours = backward(network, params, forward(network, params, x), y, feedback=feedback)
    weights = [np.asarray(W, float) for W, _ in unstack(random)]
    expected = by_numpy(params, x, y, SEAMS["nothing"], weights)
    assert g1(unstack(ours.gradients), expected, network.depth + 2, "float32")
    assert not g1(
        unstack(ours.gradients), by_numpy(params, x, y, SEAMS["nothing"]), network.depth, "float32"
    )


def test_feedback_of_other_shapes_is_refused():
    network, params, x, y = problem(SIZES[0])
    trace = forward(network, params, x)
    with pytest.raises(ValueError, match="expected one array for each entry of params"):
        backward(network, params, trace, y, feedback=tuple(layer.W.T for layer in params))
