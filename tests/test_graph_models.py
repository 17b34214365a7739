"""The reverse walk on models, losses and activations that nobody here wrote, against jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gates import eps, g4

from jaxbackprop.graph import grad

X = jax.random.normal(jax.random.key(0), (4, 6, 8))
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


def flax_model(name):
    """(params, scalar function of params) of a flax model on random data."""
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)

    class MLP(nnx.Module):
        def __init__(self):
            self.first, self.second = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    class CNN(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
            self.strided = nnx.Conv(6, 6, (3, 3), strides=2, feature_group_count=2, rngs=rngs)
            self.norm = nnx.BatchNorm(6, use_running_average=False, rngs=rngs)
            self.head = nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x):
            x = nnx.max_pool(nnx.gelu(self.norm(self.conv(x))), (2, 2), (2, 2))
            return self.head(nnx.avg_pool(self.strided(x), (2, 2)).mean((1, 2)))

    class LSTM(nnx.Module):
        def __init__(self):
            self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(8, 12, rngs=rngs))

        def __call__(self, x):
            return self.rnn(x)

    class Block(nnx.Module):
        def __init__(self):
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs) for _ in range(2)])
            self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norms[0](x))
            return x + self.down(nnx.gelu(self.up(self.norms[1](x))))

    model = {"MLP": MLP, "CNN": CNN, "LSTM": LSTM, "transformer block": Block}[name]()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    data = IMAGES if name == "CNN" else X
    return params, lambda params: (nnx.merge(graph, params, rest, copy=True)(data) ** 2).mean()


def equinox_model(name):
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    if name == "MLP":
        model = eqx.nn.MLP(8, 4, 16, 2, key=key)
        run = lambda model: jax.vmap(model)(X[0])  # noqa: E731
    else:
        model = eqx.nn.MultiheadAttention(2, 8, key=key)
        run = lambda model: model(X[0], X[1], X[2])  # noqa: E731
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params: (run(eqx.combine(params, static)) ** 2).mean()


MODELS = [
    *((flax_model, name) for name in ("MLP", "CNN", "LSTM", "transformer block")),
    *((equinox_model, name) for name in ("MLP", "attention")),
]


@pytest.mark.parametrize(("library", "name"), MODELS)
def test_a_models_gradients_equal_jax_grads(library, name):
    params, f = library(name)
    compare(f, params)


def test_the_gradient_of_attention_needs_no_more_bytes_than_jaxs():
    """The sum over a row of the softmax is that of e^z, which is kept, and of no other array."""
    x, weights = jax.random.normal(jax.random.key(2), (2, 128, 64)), jnp.ones((4, 64, 4, 16)) / 9

    def loss(weights):
        z = x - x.mean(-1, keepdims=True)
        q, k, v = jnp.einsum("bld,ndhk->nblhk", z, weights[:3])
        attention = jax.nn.softmax(jnp.einsum("blhk,bmhk->bhlm", q, k))
        y = jnp.einsum("bhlm,bmhk->blhk", attention, v)
        return ((x + jnp.einsum("blhk,dhk->bld", y, weights[3])) ** 2).sum()

    def bytes_of(grad):
        return jax.jit(grad(loss)).lower(weights).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(grad) <= bytes_of(jax.grad)


def compare(f, x):
    """G1 and G4, for a graph of about twelve operations that round one after the other.

    Some gradients are zero but for rounding (a key's bias in attention), and jax.grad's rounding
    is nothing to be near to: a leaf is held to a hundredth of the largest one at least.
    """
    found, reference = jax.jit(grad(f))(x), jax.jit(jax.grad(f))(x)
    assert g4(found, reference)
    size = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(reference))
    for g, ĝ in zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True):
        bound = 8 * eps(ĝ.dtype) * (12 + 1) * max(np.linalg.norm(ĝ), 0.01 * size)
        assert np.linalg.norm(g - ĝ) <= bound


P = jax.nn.softmax(jax.random.normal(jax.random.key(2), (5, 4)), axis=-1)
Q = jax.nn.softmax(jax.random.normal(jax.random.key(3), (5, 4)), axis=-1)
Z = jax.random.normal(jax.random.key(4), (5, 4))
SIGNS = jnp.sign(Z + 0.1)
CLASSES = jnp.array([0, 3, 1, 2, 2])
LOSSES = {
    "squared_error": (Z, P),
    "l2_loss": (Z, P),
    "huber_loss": (3 * Z, P),
    "log_cosh": (Z, P),
    "cosine_similarity": (Z, P),
    "cosine_distance": (Z, P),
    "hinge_loss": (Z, SIGNS),
    "perceptron_loss": (Z, SIGNS),
    "multiclass_hinge_loss": (Z, CLASSES),
    "multiclass_perceptron_loss": (Z, CLASSES),
    "sigmoid_binary_cross_entropy": (Z, P),
    "sigmoid_focal_loss": (Z, P),
    "softmax_cross_entropy": (Z, P),
    "softmax_cross_entropy_with_integer_labels": (Z, CLASSES),
    "safe_softmax_cross_entropy": (Z, P),
    "poly_loss_cross_entropy": (Z, P),
    "multiclass_sparsemax_loss": (Z, CLASSES),
    "sparsemax_loss": (Z[:, 0], CLASSES % 2),
    "kl_divergence": (jnp.log(P), Q),
    "kl_divergence_with_log_targets": (jnp.log(P), jnp.log(Q)),
    "generalized_kl_divergence": (jnp.log(P), Q),
    "ranking_softmax_loss": (Z, Q),
    "ntxent": (Z, CLASSES),
    "triplet_margin_loss": (Z, P, Q),
    "ctc_loss": (
        jax.random.normal(jax.random.key(5), (2, 6, 4)),
        jnp.zeros((2, 6)),
        jnp.array([[1, 2, 0], [3, 1, 2]]),
        jnp.array([[0.0, 0, 1], [0, 0, 0]]),
    ),
    "smooth_labels": (P, 0.1),
    "make_fenchel_young_loss": None,
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_optax_loss_has_the_gradient_that_jax_gives_it(name):
    if name == "make_fenchel_young_loss":
        loss, args = optax.losses.make_fenchel_young_loss(jax.nn.logsumexp), (Z, P)
    else:
        loss, args = getattr(optax, name, None) or getattr(optax.losses, name), LOSSES[name]
    f = lambda z: jnp.sum(loss(z, *args[1:]))  # noqa: E731
    compare(f, args[0])


def test_no_loss_of_optax_is_forgotten():
    """dice and gan losses and the like would be new: a failure here says which to add."""
    other = {
        "make_fenchel_young_loss",
        "ctc_loss_with_forward_probs",
        "dice_loss",
        "binary_dice_loss",
        "multiclass_generalized_dice_loss",
        "convex_kl_divergence",  # the old name of the generalized one
    }
    public = {name for name in dir(optax.losses) if not name.startswith("_")}
    found = {name for name in public if callable(getattr(optax.losses, name))}
    assert not found - set(LOSSES) - other, found - set(LOSSES) - other


ACTIVATIONS = """
    relu relu6 elu selu celu gelu silu mish sigmoid soft_sign softplus sparse_plus sparse_sigmoid
    log_sigmoid hard_tanh hard_sigmoid hard_silu leaky_relu tanh squareplus identity softmax
    log_softmax standardize logsumexp glu
"""


@pytest.mark.parametrize("name", ACTIVATIONS.split())
def test_every_activation_of_jax_nn_has_the_gradient_that_jax_gives_it(name):
    activation = getattr(jax.nn, name)
    points = jnp.linspace(-8, 8, 64).reshape(8, 8)  # none at a kink
    weights = jax.random.normal(jax.random.key(6), jax.eval_shape(activation, points).shape)
    compare(lambda z: jnp.vdot(weights, activation(z)), points)


def test_equinoxs_checkpointed_while_has_jaxs_gradient():
    eqxi = pytest.importorskip("equinox.internal")

    def f(x):
        turn = lambda c: (jnp.sin(c[0]), c[1] + 1)  # noqa: E731
        go = lambda c: c[1] < 3  # noqa: E731
        return eqxi.while_loop(go, turn, (x, 0), max_steps=4, kind="checkpointed")[0]

    assert jnp.allclose(grad(f)(0.3), jax.grad(f)(0.3))
