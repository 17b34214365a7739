"""Functions of one example in which a parameter meets it in every way that we know of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

M = 3  # examples


class Program(NamedTuple):
    f: Callable
    params: Any
    batch: Any


PROGRAMS: dict[str, Callable[[], Program]] = {}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / 2


def rows(*shape):
    """A batch of arrays of this shape."""
    return normal(99, M, *shape)


def score(y):
    return jnp.sum(jnp.sin(y) + y**2)


# ------------------------------------------------------------------ products


@program
def perceptron():
    def f(p, e):
        x, y = e
        return jnp.sum((jnp.tanh(x @ p["V"] + p["b"]) @ p["W"].T - y) ** 2)

    params = {"V": normal(0, 4, 6), "W": normal(1, 3, 6), "b": normal(2, 6), "unused": normal(3, 2)}
    return Program(f, params, (rows(4), rows(3)))


@program
def matrix_times_column():
    return Program(lambda W, x: score(W @ x[:, None]), normal(0, 5, 4), rows(4))


@program
def sequence():
    return Program(lambda W, x: score(jnp.tanh(x @ W) @ W[:4]), normal(0, 4, 4), rows(7, 4))


@program
def short_sequence_wide_matrix():
    return Program(lambda W, x: score(x @ W), normal(0, 12, 20), rows(2, 12))


@program
def few_rows_and_many_columns():
    """Products that are worth a turned copy of a factor: of this matrix, in a loop, and of its
    transpose."""

    def f(W, x):
        return score(lax.scan(lambda x, V: (jnp.tanh(x @ V) @ V.T, None), x, W)[0])

    return Program(f, normal(0, 2, 3, 256), rows(4, 3))


@program
def heads_by_einsum():
    def f(p, x):
        q, k = (jnp.einsum("td,dhk->htk", x, p[name]) for name in "qk")
        mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ jnp.einsum("td,dhk->htk", x, p["v"])
        return score(jnp.einsum("htk,hkd->td", mixed, p["o"]))

    shapes = {"q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "o": (2, 3, 4)}
    return Program(f, {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())}, rows(5, 4))


@program
def experts():
    """A batch axis that the parameter has too."""
    return Program(
        lambda W, x: score(jnp.einsum("etp,epn->etn", x, W)), normal(0, 3, 4, 5), rows(3, 2, 4)
    )


@program
def contraction_of_two_axes():
    return Program(
        lambda W, x: score(jnp.einsum("tab,nba->nt", x, W)), normal(0, 5, 2, 3), rows(4, 3, 2)
    )


@program
def both_sides():
    return Program(lambda W, x: score(W @ x @ W.T), normal(0, 4, 4), rows(4, 4))


@program
def mapped_over_tokens():
    return Program(
        lambda W, x: score(jax.vmap(lambda t: jnp.tanh(W @ t) @ W)(x)), normal(0, 4, 4), rows(3, 4)
    )


@program
def bilinear():
    def f(p, x):
        return score(jnp.einsum("i,ijk,j->k", x, p["B"], x) @ p["W"])

    return Program(f, {"B": normal(0, 4, 4, 3), "W": normal(1, 3, 2)}, rows(4))


# ------------------------------------------------------------------ several uses of one parameter


@program
def matrix_and_its_transpose():
    return Program(lambda W, x: score(jnp.tanh(x @ W) @ W.T), normal(0, 4, 6), rows(3, 4))


@program
def tied_embedding():
    def f(E, ids):
        return score(jnp.tanh(E[ids]) @ E.T)

    return Program(f, normal(0, 9, 4), jax.random.randint(jax.random.key(1), (M, 6), 0, 9))


@program
def embedding_used_for_two_inputs():
    def f(E, ids):
        return score(E[ids[:3]] * E[ids[3:]])

    return Program(f, normal(0, 5, 4), jax.random.randint(jax.random.key(1), (M, 6), 0, 5))


@program
def three_layers_of_one_matrix():
    def f(W, x):
        return score(jnp.tanh(jnp.tanh(x @ W) @ W) @ W)

    return Program(f, normal(0, 4, 4), rows(4))


@program
def weight_decay_inside():
    def f(p, x):
        return score(x @ p["W"] + p["b"]) + 0.3 * sum(jnp.sum(v**2) for v in p.values())

    return Program(f, {"W": normal(0, 4, 6), "b": normal(1, 6)}, rows(4))


@program
def decay_of_a_matrix_and_its_transpose():
    def f(W, x):
        return score(jnp.tanh(x @ W) @ W.T) + jnp.sum((W.T @ W - jnp.eye(4)) ** 2)

    return Program(f, normal(0, 6, 4), rows(3, 6))


@program
def product_and_elementwise():
    """A product, and a dense part that depends on the example."""
    return Program(lambda W, x: score(x @ W) + score(W * x[:, None]), normal(0, 4, 3), rows(4))


# ------------------------------------------------------------------ views and slices


@program
def fused_projections():
    def f(W, x):
        q, k, v = jnp.split(x @ W, 3, axis=-1)
        return score(jax.nn.softmax(q @ k.T) @ v)

    return Program(f, normal(0, 4, 12), rows(3, 4))


@program
def slices_apart():
    def f(W, x):
        q, k, v = jnp.split(W, 3, axis=1)
        return score((x @ q) * jnp.tanh(x @ k) @ v.T)

    return Program(f, normal(0, 4, 12), rows(3, 4))


@program
def slices_that_overlap():
    return Program(
        lambda W, x: score(jnp.tanh(x @ W[:, :4]) @ W[:, 2:6]), normal(0, 4, 8), rows(3, 4)
    )


@program
def slice_and_the_whole():
    return Program(lambda W, x: score(x @ W) + score(x[:2] @ W[:2]), normal(0, 4, 6), rows(4))


@program
def strided_and_reversed():
    return Program(
        lambda W, x: score(x @ W[::2]) + score(x @ W[1::2, ::-1]), normal(0, 8, 5), rows(3, 4)
    )


@program
def reshaped():
    def f(W, x):
        return score(x @ W.reshape(4, 6)) + score(x[:2] @ W.transpose(2, 0, 1)[1])

    return Program(f, normal(0, 2, 4, 3), rows(4))


@program
def reshaped_after_a_transpose():
    """No regular distances any more: formed."""
    return Program(lambda W, x: score(x @ W.T.reshape(4, 6)), normal(0, 8, 3), rows(4))


@program
def cast():
    return Program(
        lambda W, x: score((x.astype("float64") @ W.astype("float64")).astype(x.dtype)),
        normal(0, 4, 5),
        rows(3, 4),
    )


@program
def concatenated():
    def f(p, x):
        return score(x @ jnp.concatenate([p["V"], p["W"]], 1))

    return Program(f, {"V": normal(0, 4, 3), "W": normal(1, 4, 2)}, rows(4))


@program
def weight_norm():
    def f(p, x):
        W = p["g"] * p["V"] / jnp.linalg.norm(p["V"], axis=0)
        return score(x @ W)

    return Program(f, {"V": normal(0, 4, 3), "g": normal(1, 3)}, rows(2, 4))


@program
def low_rank_beside():
    def f(p, x):
        return score(x @ p["W"] + (x @ p["A"]) @ p["B"])

    return Program(f, {"W": normal(0, 6, 5), "A": normal(1, 6, 2), "B": normal(2, 2, 5)}, rows(6))


@program
def complex_numbers_between():
    def f(W, x):
        return score(jnp.abs(x.astype(complex) @ W.astype(complex) + 1j * (W * x[:, None])[0]))

    return Program(f, normal(0, 4, 3), rows(4))


@program
def spectrum():
    return Program(lambda W, x: score(jnp.abs(jnp.fft.rfft(x @ W))), normal(0, 4, 6), rows(4))


# ------------------------------------------------------------------ reading rows


def ids(*shape, low=0, high=9):
    return jax.random.randint(jax.random.key(5), (M, *shape), low, high)


@program
def rows_with_repeats():
    return Program(lambda E, i: score(E[i]), normal(0, 4, 3), ids(9, high=4))


@program
def rows_clipped():
    def f(E, i):
        return score(jnp.take(E, i, axis=0, mode="clip") @ E.T)

    return Program(f, normal(0, 6, 3), ids(5, low=-4))


@program
def rows_filled():
    def f(E, i):
        return score(E.at[i].get(mode="fill", fill_value=0))

    return Program(f, normal(0, 6, 3), ids(5, low=-9))


@program
def columns_read():
    return Program(lambda E, i: score(jnp.take(E, i, axis=1)), normal(0, 3, 9), ids(2, 4))


@program
def one_row():
    return Program(lambda E, i: score(E[i] @ E.T), normal(0, 9, 3), ids())


@program
def single_numbers_read():
    return Program(lambda E, e: score(E[e[0], e[1]]), normal(0, 9, 9), (ids(4), ids(4)))


# ------------------------------------------------------------------ convolutions


def convolution(window, image, **options):
    options = {"padding": "SAME", "window_strides": (1, 1)} | options
    numbers = ("NHWC", "HWIO", "NHWC")

    def f(p, x):
        y = lax.conv_general_dilated(x[None], p["K"], dimension_numbers=numbers, **options)
        return score(y + p["b"])

    return Program(f, {"K": normal(0, *window), "b": normal(1, window[-1])}, rows(*image))


@program
def convolved():
    return convolution((3, 3, 2, 4), (5, 6, 2))


@program
def convolved_to_few_places():
    return convolution((3, 3, 6, 8), (3, 3, 6), padding="VALID")


@program
def convolved_with_strides():
    return convolution((3, 2, 2, 4), (6, 7, 2), window_strides=(2, 3), padding="VALID")


@program
def convolved_with_holes():
    return convolution((3, 2, 2, 3), (7, 6, 2), rhs_dilation=(2, 3))


@program
def transposed_convolution():
    return convolution((3, 2, 2, 3), (4, 3, 2), lhs_dilation=(2, 2), padding=((2, 1), (-1, 2)))


@program
def grouped_convolution():
    return convolution((3, 2, 2, 6), (4, 4, 4), feature_group_count=2)


@program
def depthwise_convolution():
    return convolution((2, 2, 1, 4), (4, 4, 4), feature_group_count=4)


@program
def one_kernel_on_two_sequences():
    def f(K, x):
        def conv(x):
            return lax.conv_general_dilated(x[None], K, (1,), "SAME")

        return score(conv(x) + conv(x**2))

    return Program(f, normal(0, 3, 2, 3), rows(2, 6))


@program
def flipped_kernel():
    return Program(lambda k, x: score(jnp.convolve(x, k, "same")), normal(0, 3), rows(8))


# ------------------------------------------------------------------ loops


@program
def recurrent():
    def f(p, xs):
        def step(h, x):
            h = jnp.tanh(x @ p["V"] + p["W"] @ h + p["b"])
            return h, h @ p["W"]

        h, ys = lax.scan(step, jnp.zeros(4), xs)
        return score(h) + score(ys)

    return Program(f, {"V": normal(0, 3, 4), "W": normal(1, 4, 4), "b": normal(2, 4)}, rows(6, 3))


@program
def layers_in_a_loop():
    def f(p, x):
        def layer(x, own):
            W, b = own
            return x + jnp.tanh(x @ W.T + b), None

        return score(lax.scan(layer, x, (p["W"], p["b"]), reverse=True)[0])

    return Program(f, {"W": normal(0, 3, 4, 4), "b": normal(1, 3, 4)}, rows(2, 4))


@program
def layers_in_a_loop_that_share():
    """Slices of a parameter, and all of it, at every step."""

    def f(W, x):
        return score(lax.scan(lambda x, V: (jnp.tanh(x @ V) @ W[0], None), x, W)[0])

    return Program(f, normal(0, 3, 4, 4), rows(4))


@program
def loop_in_a_loop():
    def f(p, xs):
        def layer(h, W):
            def step(h, x):
                return jnp.tanh(h @ W + x @ p["V"]), jnp.tanh(h) @ p["V"].T

            return lax.scan(step, h, xs)

        h, ys = lax.scan(layer, jnp.ones(4), p["W"])
        return score(h) + score(ys)

    return Program(f, {"V": normal(0, 3, 4), "W": normal(1, 2, 4, 4)}, rows(3, 3))


@program
def loop_with_remat():
    def f(W, xs):
        @jax.checkpoint
        def step(h, x):
            return jnp.tanh(W @ h + x), None

        return score(lax.scan(step, jnp.zeros(4), xs)[0])

    return Program(f, normal(0, 4, 4), rows(5, 4))


@program
def layer_by_its_number():
    def f(W, x):
        return score(lax.fori_loop(0, 3, lambda l, x: jnp.tanh(x @ W[l]), x))

    return Program(f, normal(0, 3, 4, 4), rows(4))


@program
def rows_read_in_a_loop():
    def f(p, ids):
        def step(h, i):
            return jnp.tanh(p["W"] @ h + p["E"][i]), None

        return score(lax.scan(step, jnp.zeros(4), ids)[0] @ p["E"].T)

    return Program(f, {"E": normal(0, 9, 4), "W": normal(1, 4, 4)}, ids(5))


@program
def tables_in_a_loop():
    """A table of rows for each layer, read by the same ids."""

    def f(E, ids):
        return score(
            lax.scan(lambda h, own: (jnp.tanh(h + own[ids]), None), jnp.zeros((5, 4)), E)[0]
        )

    return Program(f, normal(0, 2, 9, 4), ids(5))


@program
def kernels_in_a_loop():
    def f(K, x):
        def layer(x, k):
            return x + lax.conv_general_dilated(x[None], k, (1,), "SAME")[0], None

        return score(lax.scan(layer, x, K)[0])

    return Program(f, normal(0, 3, 2, 2, 3), rows(2, 5))


@program
def learned_start():
    def f(p, xs):
        return score(lax.scan(lambda h, x: (jnp.tanh(p["W"] @ h + x), None), p["h"], xs)[0])

    return Program(f, {"W": normal(0, 4, 4), "h": normal(1, 4)}, rows(5, 4))


@program
def parameter_carried():
    def f(W, xs):
        return score(lax.scan(lambda W, x: (W + jnp.outer(x, x @ W), None), W, xs)[0])

    return Program(f, normal(0, 4, 4), rows(3, 4))


# ------------------------------------------------------------------ calls and branches


@program
def jitted_and_rematerialised():
    @jax.jit
    def layer(W, x):
        return jnp.tanh(x @ W.T)

    return Program(
        lambda W, x: score(jax.checkpoint(layer)(W, layer(W, x))), normal(0, 4, 4), rows(4)
    )


@program
def own_backward_pass():
    @jax.custom_vjp
    def product(x, W):
        return x @ W

    product.defvjp(
        lambda x, W: (x @ W, (x, W)), lambda kept, ct: (ct @ kept[1].T, jnp.outer(kept[0], ct))
    )
    return Program(lambda W, x: score(product(x, W)) + score(x @ W), normal(0, 4, 3), rows(4))


@program
def branches():
    def f(p, x):
        y = lax.cond(x[0] > 0, lambda W, x: x @ W, lambda W, x: (x**2) @ W, p["W"], x)
        return score(y @ p["V"])

    return Program(f, {"W": normal(0, 4, 4), "V": normal(1, 4, 3)}, rows(4))


@program
def layer_norm():
    def f(p, x):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
        return score((x * p["g"] + p["b"]) @ p["W"])

    return Program(f, {"g": normal(0, 6), "b": normal(1, 6), "W": normal(2, 6, 3)}, rows(4, 6))


@program
def dropout():
    """A key an example, in the batch."""

    def f(W, e):
        x, key = e
        return score(jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0) @ W)

    return Program(f, normal(0, 8, 3), (rows(8), jax.random.split(jax.random.key(7), M)))


@program
def parameters_alone():
    """Nothing of the example: the same gradient for all."""
    return Program(
        lambda p, x: score(p["W"] @ p["v"]), {"W": normal(0, 3, 4), "v": normal(1, 4)}, rows(2)
    )


@program
def scalar_parameter():
    return Program(lambda s, x: score(s * x), normal(0), rows(4))


@program
def no_numbers():
    def f(p, x):
        return score(x @ p["W"]) + jnp.sum(p["none"])

    return Program(f, {"W": normal(0, 4, 3), "none": jnp.zeros((0, 3))}, rows(4))
