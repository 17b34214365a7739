"""Per-example gradients of models that nobody here wrote, and of what they take in bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import per_example

M = 3


def attention(q, k, v, **options):
    """As flax's own, which takes its softmax in float32 whatever the dtype."""
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), v)


def flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Block(nnx.Module):
        def __init__(self, rngs):
            options = {"dtype": "float64", "param_dtype": "float64", "rngs": rngs}
            self.norm = nnx.LayerNorm(8, **options)
            self.attention = nnx.MultiHeadAttention(
                num_heads=2, in_features=8, decode=False, attention_fn=attention, **options
            )
            self.embed = nnx.Embed(11, 8, **options)
            self.conv = nnx.Conv(8, 8, (3,), feature_group_count=2, **options)

        def __call__(self, tokens):
            x = self.embed(tokens)
            x = x + self.conv(self.attention(self.norm(x)))
            return self.embed.attend(nnx.gelu(x))

    graph, params = nnx.split(Block(nnx.Rngs(0)), nnx.Param)

    def f(params, tokens):
        logits = nnx.merge(graph, params)(tokens[:-1])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[1:, None], -1))

    return f, params, jax.random.randint(jax.random.key(0), (M, 6), 0, 11)


def flax_linen():
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(4, (3, 3), strides=2)(x))
            x = linen.GroupNorm(2)(linen.ConvTranspose(4, (2, 2))(x))
            scan = linen.RNN(linen.GRUCell(5, param_dtype=x.dtype))
            return linen.Dense(3)(scan(x.reshape(-1, 4))[-1])

    model, x = Model(), jax.random.normal(jax.random.key(0), (M, 4, 4, 2), "float64")
    params = model.init(jax.random.key(1), x[0])
    return lambda params, x: jnp.sum(model.apply(params, x) ** 2), params, x


def equinox():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.nn.LSTMCell(3, 4, key=keys[0]), eqx.nn.MLP(4, 2, 5, 1, key=keys[1])
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def f(params, xs):
        cell, head = eqx.combine(params, rest)
        zero = jnp.zeros(4), jnp.zeros(4)
        (h, _), _ = jax.lax.scan(lambda state, x: (cell(x, state), None), zero, xs)
        return jnp.sum(jax.checkpoint(lambda h: head(h))(h) ** 2)

    return f, params, jax.random.normal(keys[2], (M, 5, 3))


@pytest.mark.parametrize("model", [flax_nnx, flax_linen, equinox])
def test_models_of_flax_and_equinox_agree_with_one_gradient_an_example(model, x64):
    f, params, batch = model()
    params = jax.tree.map(lambda p: p.astype("float64"), params)
    batch = batch.astype("float64") if jnp.issubdtype(batch.dtype, jnp.floating) else batch
    reference = jax.jit(jax.vmap(jax.grad(f), (None, 0)))(params, batch)
    squares = jax.tree.map(lambda g: jnp.sum(g.reshape(M, -1) ** 2, 1), reference)
    norms = jnp.sqrt(sum(jax.tree.leaves(squares)))
    bound = jnp.median(norms)
    share = jnp.minimum(1, bound / norms)

    @jax.jit
    def ours(params, batch):
        norms = per_example.squared_norms(f)(params, batch)
        return norms, per_example.clipped_mean(f, bound)(params, batch)

    wanted = squares, jax.tree.map(lambda g: jnp.tensordot(share, g, 1) / M, reference)
    for found, right in zip(ours(params, batch), wanted, strict=True):
        scale = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(right))
        for a, b in zip(*map(jax.tree.leaves, (found, right)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * scale)


def transformer(params, x):
    """Two blocks of dense layers on a sequence, one in a loop: nothing is formed but scales."""
    x = x @ params["in"]

    def block(x, own):
        up, down, scale = own
        return x + scale * jax.nn.gelu(x @ up) @ down, None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    return jnp.mean((x @ params["in"].T) ** 2)


def bytes_of(f, *arguments):
    return jax.jit(f).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_no_gradient_of_an_example_is_held():
    """At most three times the bytes of one gradient of the batch, and never m parameters."""
    m, width = 64, 128
    keys = jax.random.split(jax.random.key(0), 4)
    blocks = (
        jax.random.normal(keys[1], (2, width, 2 * width)) / 10,
        jax.random.normal(keys[2], (2, 2 * width, width)) / 10,
        jnp.ones((2, 1)),
    )
    params = {"in": jax.random.normal(keys[0], (32, width)) / 10, "blocks": blocks}
    x = jax.random.normal(keys[3], (m, 6, 32))

    def mean(params, x):
        return jnp.mean(jax.vmap(transformer, (None, 0))(params, x))

    one = bytes_of(jax.value_and_grad(mean), params, x)
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    for ask in (
        per_example.gradient_norms(transformer),
        per_example.clipped_mean(transformer, 1.0),
        per_example.weighted_mean(transformer, jnp.ones(m)),
        per_example.second_moment(transformer),
        per_example.variance(transformer),
    ):
        held = bytes_of(ask, params, x)
        assert held <= 3 * one
        assert held < m * size / 3
    twin = jax.vmap(jax.grad(transformer), (None, 0))
    assert bytes_of(lambda *a: jax.tree.map(lambda g: g * g, twin(*a)), params, x) > 0
    micro = bytes_of(per_example.clipped_mean(transformer, 1.0, microbatch=8), params, x)
    assert micro < bytes_of(per_example.clipped_mean(transformer, 1.0), params, x) / 2


def test_two_long_sequences_take_much_less_than_four_by_vmap_of_grad():
    """Where gradients are no larger than their factors two at a time are as fast as its four."""
    keys = jax.random.split(jax.random.key(0), 4)
    blocks = jax.random.normal(keys[1], (1, 128, 512)), jax.random.normal(keys[2], (1, 512, 128))
    params = {"in": jax.random.normal(keys[0], (128, 128)), "blocks": (*blocks, jnp.ones((1, 1)))}
    x = jax.random.normal(keys[3], (8, 64, 128))

    def twin(params, x):
        def add(total, part):
            found = jax.vmap(jax.grad(transformer), (None, 0))(params, part)
            squares = (jnp.sum(g.reshape(4, -1) ** 2, 1) for g in jax.tree.leaves(found))
            share = jnp.minimum(1, 1 / jnp.sqrt(sum(squares)))
            return jax.tree.map(lambda t, g: t + jnp.tensordot(share, g, 1), total, found), None

        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zero, x.reshape(2, 4, 64, 128))[0]

    ours = per_example.clipped_mean(transformer, 1.0, microbatch=2)
    assert bytes_of(ours, params, x) <= 0.6 * bytes_of(twin, params, x)


def test_norms_in_bfloat16_are_those_of_one_gradient_an_example_to_a_thousandth():
    def f(params, x):
        V, W = params
        return jnp.sum(jnp.tanh(x @ V) @ W)

    keys = jax.random.split(jax.random.key(0), 3)
    params = [jax.random.normal(k, s) / 8 for k, s in zip(keys, [(64, 96), (96, 32)], strict=False)]
    params, x = jax.tree.map(
        lambda p: p.astype("bfloat16"), (params, jax.random.normal(keys[2], (5, 8, 64)))
    )
    found = per_example.squared_norms(f)(params, x)
    # Compiled: evaluated op by op, vmap(grad) is 1.3e-3 from its own program on jax 0.12.
    each = jax.tree.map(np.float64, jax.jit(jax.vmap(jax.grad(f), (None, 0)))(params, x))
    for ours, g in zip(found, each, strict=True):
        norms = np.linalg.norm(g.reshape(5, -1), axis=1)
        np.testing.assert_allclose(np.sqrt(np.float64(ours)), norms, rtol=1e-3)


def test_the_plan_says_what_is_formed_and_why():
    def f(params, x):
        h = jnp.tanh(x @ params["W"] + params["b"])
        return jnp.sum((h @ (params["V"] / jnp.linalg.norm(params["V"]))) ** 2)

    params = {"W": jnp.ones((4, 6)), "V": jnp.ones((6, 3)), "b": jnp.ones(6), "none": jnp.ones(2)}
    plan = per_example.plan(f)(params, jax.ShapeDtypeStruct((4,), "float32"))
    leaves = {leaf.name: leaf for leaf in plan.leaves}
    assert leaves["['W']"].form == "product"
    assert leaves["['W']"].bytes == 4 * (4 + 6)
    assert leaves["['V']"].form == "formed"
    assert leaves["['V']"].bytes == 4 * 18
    assert "test_per_example_models.py" in leaves["['V']"].why
    assert leaves["['none']"].why == "not used"
    assert plan.bytes == 4 * (10 + 18 + 6)
    assert plan.gradient_bytes == 4 * (24 + 18 + 6 + 2)
    assert len(str(plan).splitlines()) == 5


def test_the_plan_advises_microbatches_for_long_sequences_and_formed_gradients():
    def advised(f, params, *shape):
        return per_example.plan(f)(params, jax.ShapeDtypeStruct(shape, "float32")).microbatch

    W = jnp.ones((8, 8))
    assert advised(lambda W, x: jnp.sum((x @ W) ** 2), W, 8) is None
    assert advised(lambda W, x: jnp.sum((x @ W) ** 2), W, 128, 8) == 2
    assert advised(lambda W, x: jnp.sum((x @ jnp.sin(W)) ** 2), W, 8) == 1
