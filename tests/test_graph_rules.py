"""Each rule of contraction, indexing, windows, cumulative, sorting and linalg against jax.vjp."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import g1, g3, g4
from jax import lax

from jaxbackprop.graph import UnsupportedPrimitive, vjp
from jaxbackprop.graph.rules import RULES

rng = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def dot(sums, batch=((), ())):
    return functools.partial(lax.dot_general, dimension_numbers=(sums, batch))


def conv(**options):
    def f(x, w):
        return lax.conv_general_dilated(x, w, **({"window_strides": (1, 1)} | options))

    return f


def pool(init, reducer, window, strides, padding, **options):
    return lambda x: lax.reduce_window(
        x, np.float32(init), reducer, window, strides, padding, **options
    )


def read_at(places, mode):
    return lambda x: x.at[jnp.asarray(places)].get(mode=mode)


def write_at(how, places, **options):
    return lambda x, u: getattr(x.at[jnp.asarray(places)], how)(u, **options)


def reduced(join, initial, axes):
    return lambda x: lax.reduce(x, np.float32(initial), join, axes)


def definite(x):
    return x @ x.T + 4 * jnp.eye(x.shape[0], dtype=x.dtype)


def solve(**options):
    return functools.partial(lax.linalg.triangular_solve, **options)


WELL = draw(3, 3) + 4 * jnp.eye(3, dtype=jnp.float32)
ZEROS = jnp.array([[2.0, 0, 3, 0, 5], [1, 0, 2, 3, 4], [1, 2, 3, 4, 5]], jnp.float32)
TIES = jnp.array([3.0, 1, 3, 2, 1, 3], jnp.float32)
MAX, MIN = (-np.inf, lax.max), (np.inf, lax.min)

CASES = {
    "dot": (dot(((1,), (0,))), draw(2, 3), draw(3, 4)),
    "dot, batched": (dot(((1,), (2,)), ((2, 0), (0, 1))), draw(2, 3, 4), draw(4, 2, 3)),
    "dot, two axes summed": (dot(((0, 2), (1, 0))), draw(2, 3, 4), draw(4, 2, 5)),
    "dot, outer": (dot(((), ())), draw(2), draw(3)),
    "conv": (conv(padding="SAME"), draw(2, 3, 5, 6), draw(4, 3, 3, 2)),
    "conv, strided": (
        conv(padding=((1, 0), (2, 1)), window_strides=(2, 3)),
        draw(2, 3, 7, 8),
        draw(4, 3, 3, 2),
    ),
    "conv, kernel dilated": (
        conv(padding="VALID", rhs_dilation=(2, 3)),
        draw(1, 2, 7, 8),
        draw(3, 2, 3, 2),
    ),
    "conv, input dilated": (
        conv(padding=((2, 1), (0, 3)), lhs_dilation=(2, 3), window_strides=(2, 2)),
        draw(1, 2, 4, 4),
        draw(3, 2, 3, 2),
    ),
    "conv, cropped": (conv(padding=((-1, 0), (0, -2))), draw(1, 2, 6, 7), draw(3, 2, 2, 2)),
    "conv, feature groups": (
        conv(padding="SAME", feature_group_count=2, window_strides=(2, 1)),
        draw(2, 6, 5, 5),
        draw(4, 3, 3, 3),
    ),
    "conv, depthwise": (
        conv(padding="SAME", feature_group_count=3),
        draw(2, 3, 5, 5),
        draw(6, 1, 3, 3),
    ),
    "conv, batch groups": (
        conv(padding="SAME", batch_group_count=2, rhs_dilation=(2, 1)),
        draw(4, 3, 5, 5),
        draw(6, 3, 3, 3),
    ),
    "conv, channels last": (
        conv(padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2),
        draw(2, 5, 5, 4),
        draw(3, 3, 2, 6),
    ),
    "split": (lambda x: lax.split(x, (1, 3), 1), draw(2, 4)),
    "copy": (jnp.copy, draw(3)),
    "slice": (lambda x: lax.slice(x, (1, 0), (6, 3), (2, 1)), draw(7, 3)),
    "slice, empty": (lambda x: x[2:2], draw(4)),
    "dynamic_slice": (lambda x: lax.dynamic_slice(x, (1, 2), (2, 2)), draw(4, 5)),
    "dynamic_slice, beyond the end": (
        lambda x: lax.dynamic_slice(x, (jnp.int32(3), jnp.int32(-9)), (2, 2)),
        draw(4, 5),
    ),
    "a scalar index beyond the end": (lambda x: x[jnp.int32(9)], draw(4)),
    "dynamic_update_slice": (
        lambda x, u: lax.dynamic_update_slice(x, u, (1, 2)),
        draw(4, 5),
        draw(2, 2),
    ),
    "dynamic_update_slice, beyond the end": (
        lambda x, u: lax.dynamic_update_slice(x, u, (jnp.int32(9), jnp.int32(-9))),
        draw(4, 5),
        draw(2, 2),
    ),
    "gather, duplicates": (read_at([1, 1, 3, 1], "promise_in_bounds"), draw(4, 2)),
    "gather, clip": (read_at([1, 9, -9, 3], "clip"), draw(4, 2)),
    "gather, fill": (read_at([1, 9, 1, 3], "fill"), draw(4, 2)),
    "gather, batched": (
        lambda x: jnp.take_along_axis(x, jnp.array([[2, 2], [0, 1]]), 1),
        draw(2, 3),
    ),
    "scatter": (write_at("set", [3, 0]), draw(4, 2), draw(2, 2)),
    "scatter, beyond the end": (write_at("set", [9, 0], mode="drop"), draw(4, 2), draw(2, 2)),
    "scatter, duplicates": (write_at("set", [1, 1, 0]), draw(4, 2), draw(3, 2)),
    "scatter-add, duplicates": (write_at("add", [1, 1, 9]), draw(4, 2), draw(3, 2)),
    "scatter-sub": (write_at("subtract", [1, 1, 0]), draw(4, 2), draw(3, 2)),
    "scatter-mul": (write_at("multiply", [1, 0], unique_indices=True), draw(4, 2), draw(2, 2)),
    "scatter-max, duplicates": (write_at("max", [1, 1, 9]), draw(4, 2), draw(3, 2)),
    "scatter-max, ties": (write_at("max", [1, 1]), jnp.ones(3), jnp.ones(2)),
    "scatter-min": (write_at("min", [1, 1, 0]), draw(4, 2), draw(3, 2)),
    "window sum": (pool(0, lax.add, (2, 3), (1, 2), "SAME"), draw(5, 6)),
    "window sum, dilated": (
        pool(
            0,
            lax.add,
            (2, 2),
            (2, 1),
            ((1, 0), (0, 2)),
            base_dilation=(2, 1),
            window_dilation=(1, 2),
        ),
        draw(4, 5),
    ),
    "window max": (pool(*MAX, (2, 3), (1, 2), "SAME"), draw(5, 6)),
    "window max, ties": (pool(*MAX, (3,), (2,), "SAME"), jnp.ones(6)),
    "window min": (pool(*MIN, (2, 2), (2, 2), "VALID"), draw(5, 6)),
    "reduce": (reduced(jnp.logaddexp, -np.inf, (0, 2)), draw(3, 5, 4)),
    "reduce, nothing": (reduced(jnp.logaddexp, -np.inf, (1,)), draw(3, 0)),
    "reduce, of zero size": (reduced(jnp.logaddexp, -np.inf, (1,)), draw(0, 3)),
    "ragged dot": (
        lambda x, y: lax.ragged_dot(x, y, jnp.array([2, 0, 3])),
        draw(6, 3),
        draw(3, 3, 2),
    ),
    "dot, wider": (
        functools.partial(dot(((1,), (0,))), preferred_element_type=jnp.float32),
        draw(2, 3).astype("bfloat16"),
        draw(3, 4).astype("bfloat16"),
    ),
    "unstack": (lambda x: lax.unstack(x)[1], draw(3, 2)),
    "random gamma": (lambda a: jax.random.gamma(jax.random.key(0), a), jnp.array([0.5, 2, 9])),
    "random loggamma": (lambda a: jax.random.loggamma(jax.random.key(0), a), jnp.array([0.1, 2])),
    "betainc": (lambda x: jax.scipy.special.betainc(2.0, 3.0, x), jnp.array([0.2, 0.7])),
    "log2": (jnp.log2, draw(4) ** 2),
    "prod, under vmap": (jax.vmap(jnp.prod), draw(2, 4)),
    "cumsum": (lambda x: lax.cumsum(x, 1), draw(2, 4)),
    "cumsum, reversed": (lambda x: lax.cumsum(x, 0, reverse=True), draw(3, 4)),
    "cumprod": (lambda x: lax.cumprod(x, 1, reverse=True), draw(2, 4)),
    "cumprod of zeros": (lambda x: lax.cumprod(x, 1), ZEROS),
    "prod of zeros": (lambda x: jnp.prod(x, 1), ZEROS),
    "cummax": (lambda x: lax.cummax(x, 0, reverse=True), draw(4, 3)),
    "cummin": (lambda x: lax.cummin(x, 1), draw(3, 4)),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, 0), draw(5, 2)),
    "sort": (lambda x: lax.sort(x, dimension=0), draw(5, 2)),
    "sort, ties": (lax.sort, TIES),
    "sort, several operands": (
        lambda x, y: lax.sort((x, jnp.arange(6), y), num_keys=1),
        TIES,
        draw(6),
    ),
    "sort, two keys": (lambda x, y: lax.sort((x, y), num_keys=2), TIES, draw(6)),
    "top_k": (lambda x: lax.top_k(x, 2)[0], draw(3, 5)),
    "cholesky": (lambda x: jnp.linalg.cholesky(definite(x)), draw(3, 3)),
} | {
    f"triangular_solve, {left=}, {lower=}, {transposed=}, {unit=}": (
        solve(left_side=left, lower=lower, transpose_a=transposed, unit_diagonal=unit),
        WELL,
        draw(3, 2) if left else draw(2, 3),
    )
    for left, lower, transposed, unit in np.ndindex(2, 2, 2, 2)
}


def gradients(transform, f, *primals, dtype=None):
    """(ours or jax's) vjp at a cotangent that is the same for both. dtype: what it is drawn in."""
    out, pullback = transform(f, *primals)
    rng = np.random.default_rng(1)
    cts = [
        jnp.asarray(rng.normal(size=leaf.shape), dtype or leaf.dtype).astype(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else np.zeros(leaf.shape, jax.dtypes.float0)
        for leaf in jax.tree.leaves(out)
    ]
    return pullback(jax.tree.unflatten(jax.tree.structure(out), cts))


def both(f, *primals, dtype=None):
    """Ours and jax's. One program has both: most of a test's time is compiling."""
    return jax.jit(
        lambda *xs: tuple(gradients(transform, f, *xs, dtype=dtype) for transform in (vjp, jax.vjp))
    )(*primals)


def same(ours, jaxs):
    return g4(ours, jaxs) and g1(ours, jaxs, depth=1)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_what_jax_gives(name):
    assert same(*both(*CASES[name]))


SICK = jnp.array([1.0, 3, jnp.nan, 2, 2, 5, -1, jnp.nan])
WITH_NAN = {
    "max": jnp.max,
    "min": jnp.min,
    "prod": jnp.prod,
    "std": jnp.std,
    "logsumexp": jax.nn.logsumexp,
    "window max": pool(*MAX, (3,), (1,), "SAME"),
    "window min": pool(*MIN, (2,), (2,), "VALID"),
    "window sum": pool(0, lax.add, (2,), (2,), "VALID"),
    "cummax": lax.cummax,
    "cumsum": lax.cumsum,
    "cumprod": lax.cumprod,
    "cumlogsumexp": lax.cumlogsumexp,
    "sort": lax.sort,
    "top_k": lambda x: lax.top_k(x, 3)[0],
    "maximum": lambda x: jnp.maximum(x, 2),
    "clip": lambda x: jnp.clip(x, 0, 2),
    "abs": jnp.abs,
    "relu": jax.nn.relu,
}


@pytest.mark.parametrize("name", WITH_NAN)
def test_nan_in_the_input_is_nan_in_the_same_places_as_in_jax(name):
    assert g4(*both(WITH_NAN[name], SICK))


def test_cumlogsumexp_of_large_numbers_is_as_near_the_truth_as_jax(x64):
    def f(x):
        return lax.cumlogsumexp(x, 0, reverse=True)

    x = 100 * draw(5, 2)
    truth = both(f, x.astype(jnp.float64), dtype=jnp.float32)[1]
    assert g3(*both(f, x), truth)


SECOND = [
    "conv, feature groups",
    "scatter, duplicates",
    "window sum",
    "window max",
    "cumprod of zeros",
    "cumlogsumexp",
    "sort, ties",
    "cholesky",
]


@pytest.mark.parametrize("name", SECOND)
def test_rules_can_be_differentiated_jitted_and_batched(name):
    """∂/∂x of |∂f/∂x|² with our vjp within our vjp, against jax's within jax's."""
    f, *primals = CASES[name]

    def second(transform):
        def energy(*xs):
            gs = gradients(transform, lambda *ys: jnp.sum(jnp.sin(f(*ys))), *xs)
            return sum(jnp.sum(g * g) for g in gs)

        @jax.jit
        @jax.vmap
        def batched(*xs):
            return transform(energy, *xs)[1](jnp.ones(()))

        return batched(*(jnp.stack([x, 0.5 * x]) for x in primals))

    ours, jaxs = second(vjp), second(jax.vjp)
    assert g4(ours, jaxs)
    assert g1(ours, jaxs, depth=9)


# Wrong rules: what each is called, the case that rejects it, and the rule made wrong.


def change(name, change_contribution):
    def make():
        right = RULES[name]

        def wrong(cts, outs, *inputs, **params):
            contributions = right(cts, outs, *inputs, **params)
            return tuple(
                None if c is None else (lambda c=c, x=x: change_contribution(c(), x))
                for c, x in zip(contributions, inputs, strict=True)
            )

        return wrong

    return make


def replace(function):
    return lambda: function


def flat_gather(cts, outs, x, indices, **params):
    """The last of several reads overwrites the others: = for +=."""
    return (lambda: jnp.zeros_like(x).at[indices[:, 0]].set(cts[0]), None)


def dividing_cumprod(cts, outs, x, *, axis, reverse):
    return (lambda: lax.cumsum(cts[0] * outs[0], axis, reverse=not reverse) / x,)


def forward_cumsum(cts, outs, x, *, axis, reverse):
    return (lambda: lax.cumsum(cts[0], axis, reverse=reverse),)


def unclamped_slice(cts, outs, x, *starts, slice_sizes):
    places = tuple(
        start + jnp.arange(n).reshape([-1 if e == d else 1 for e in range(x.ndim)])
        for d, (start, n) in enumerate(zip(starts, slice_sizes, strict=True))
    )
    back = jnp.zeros_like(x)
    return (lambda: back.at[places].add(cts[0], mode="drop"), *(None for _ in starts))


def unsorted_sort(cts, outs, *xs, **params):
    return tuple((lambda ct=ct: ct) for ct in cts)


def all_writers(cts, outs, x, indices, updates, **params):
    return (lambda: cts[0].at[indices[:, 0]].set(0), None, lambda: cts[0][indices[:, 0]])


def every_tie(cts, outs, x, *, window_dimensions, window_strides, **params):
    spread = jnp.repeat(cts[0], window_strides[0])[: x.shape[0]]
    return (lambda: spread * (x == 1),)


WRONG = {
    "dot transposed": ("dot", "dot_general", change("dot_general", lambda g, x: g[::-1])),
    "kernel not reversed": (
        "conv",
        "conv_general_dilated",
        change("conv_general_dilated", lambda g, x: g[..., ::-1]),
    ),
    "groups exchanged": (
        "conv, feature groups",
        "conv_general_dilated",
        change("conv_general_dilated", lambda g, x: jnp.roll(g, 1, 1)),
    ),
    "slice off by one": ("slice", "slice", change("slice", lambda g, x: jnp.roll(g, 1, 0))),
    "slice not moved in": (
        "dynamic_slice, beyond the end",
        "dynamic_slice",
        replace(unclamped_slice),
    ),
    "= for +=": ("gather, duplicates", "gather", replace(flat_gather)),
    "every writer": ("scatter, duplicates", "scatter", replace(all_writers)),
    "divided by zero": ("cumprod of zeros", "cumprod", replace(dividing_cumprod)),
    "from the same end": ("cumsum", "cumsum", replace(forward_cumsum)),
    "not undone": ("sort", "sort", replace(unsorted_sort)),
    "each of equal maxima": ("window max, ties", "reduce_window_max", replace(every_tie)),
    "diagonal not halved": (
        "cholesky",
        "cholesky",
        change("cholesky", lambda g, x: g + jnp.diag(jnp.diag(g))),
    ),
    "sign of A⁻¹": (
        "triangular_solve, left=1, lower=1, transposed=0, unit=0",
        "triangular_solve",
        change("triangular_solve", lambda g, x: -g),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_is_rejected(wrong, monkeypatch):
    case, primitive, make = WRONG[wrong]
    assert same(*both(*CASES[case]))
    monkeypatch.setitem(RULES, primitive, make())
    assert not same(*both(*CASES[case]))


def test_factors_that_meet_in_one_place_are_refused_by_name():
    f = write_at("multiply", [1, 1])
    with pytest.raises(UnsupportedPrimitive, match="scatter-mul"):
        gradients(vjp, f, draw(4), draw(2))


def test_a_product_in_a_wider_dtype_gives_cotangents_in_the_dtype_of_its_factors():
    x, y = draw(4).astype("bfloat16"), draw(4).astype("bfloat16")
    f = functools.partial(lax.mul, out_dtype=jnp.float32)
    ours, reference = (transform(f, x, y)[1](draw(4)) for transform in (vjp, jax.vjp))
    assert [g.dtype for g in ours] == [g.dtype for g in reference] == ["bfloat16"] * 2


def test_nextafter_follows_its_first_argument():
    _, pullback = vjp(lax.nextafter, draw(4), draw(4))
    x, y = pullback(jnp.ones(4))
    assert np.array_equal(x, np.ones(4))
    assert not np.any(y)


def test_a_stretched_divisor_collects_from_all_that_it_divides():
    """By x: ct / y. By y: Σ −ct x / y², over the row that the entry of y divides."""
    x, y = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[2.0], [4.0]])
    out, pullback = vjp(lambda x, y: x / y, x, y)
    by_x, by_y = pullback(jnp.ones_like(out))
    np.testing.assert_allclose(by_x, [[1 / 2, 1 / 2], [1 / 4, 1 / 4]])
    np.testing.assert_allclose(by_y, [[-3 / 4], [-7 / 16]])
    _, pullback = vjp(lambda y: x / y, jnp.float32(2))
    np.testing.assert_allclose(pullback(jnp.ones_like(out))[0], -10 / 4)
    x, y = draw(1, 2, 3, 2), jnp.full((1, 2, 1, 1), 2.0)
    _, pullback = vjp(lambda y: x / y, y)
    np.testing.assert_allclose(pullback(x)[0], -np.sum(x * x, (2, 3), keepdims=True) / 4, rtol=1e-6)
    few, many = draw(1, 2), draw(3, 1)
    _, pullback = vjp(jax.jit(lambda y: few / y), many)
    expected = -np.sum(few / many**2, 1, keepdims=True)
    np.testing.assert_allclose(pullback(jnp.ones((3, 2)))[0], expected, rtol=1e-6)


def test_cholesky_of_the_lower_triangle_alone_has_the_gradient_of_the_installed_jax():
    f = functools.partial(lax.linalg.cholesky, symmetrize_input=False)
    x, ct = definite(draw(3, 3)), draw(3, 3)
    (ours,), (reference,) = (transform(f, x)[1](ct) for transform in (vjp, jax.vjp))
    assert g1(ours, reference, depth=3)
    assert not g1(ours + ours.T, reference, depth=3)


# --- reductions by a function of one's own, and what jax.vjp does not reach ---


def test_a_reduction_joins_its_initial_value_once():
    """logaddexp from 0 over (1, 2, 3): softmax of (0, 1, 2, 3)."""
    shares = np.exp([0.0, 1, 2, 3]) / np.exp([0.0, 1, 2, 3]).sum()

    def f(initial, x):
        return lax.reduce(x, initial, jnp.logaddexp, (0,))

    _, pullback = vjp(f, jnp.float32(0), jnp.array([1.0, 2, 3]))
    by_initial, by_x = pullback(jnp.float32(1))
    np.testing.assert_allclose([by_initial, *by_x], shares, rtol=1e-6)


def affine(a, b):
    """x ↦ a₀ x + a₁ after b, and so on: neighbours may be joined first, but not exchanged."""
    return b[0] * a[0], b[0] * a[1] + b[1]


def pairs(x):
    start = np.float32(1), np.float32(0)
    return lax.reduce((x, 2 * x), start, affine, (0,))[1]


def window(join, initial, *shape, **dilations):
    return lambda x: lax.reduce_window(x, np.float32(initial), join, *shape, **dilations)


UNREACHED = {
    "pairs": pairs,
    "window product": window(lax.mul, 1, (2, 2), (1, 1), "VALID"),
    "window logaddexp": window(
        jnp.logaddexp, -np.inf, (2, 2), (1, 2), ((0, 1), (1, 0)), base_dilation=(2, 1)
    ),
    "window max from 0": window(lax.max, 0, (2, 2), (1, 1), "SAME"),
    "window max, dilated": window(
        lax.max, -np.inf, (2, 2), (1, 1), "VALID", window_dilation=(2, 1)
    ),
    "window max, cropped": window(lax.max, -np.inf, (2, 2), (2, 1), ((-1, 0), (0, -1))),
    "window min, holes in x": window(
        lax.min, np.inf, (3, 3), (2, 1), ((1, 1), (-1, 2)), base_dilation=(2, 3)
    ),
}


@pytest.mark.parametrize("name", UNREACHED)
def test_a_reduction_has_the_slope_that_differences_have(name):
    apart = np.random.default_rng(5).permutation(20).reshape(5, 4) / 5 - 2.05
    x, direction, h = jnp.asarray(apart, jnp.float32), draw(5, 4), 1e-2  # no maximum changes place

    def energy(x):
        return jnp.sum(jnp.sin(UNREACHED[name](x)))

    @jax.jit
    def found(x):
        _, pullback = vjp(energy, x)
        along = jnp.vdot(pullback(jnp.ones(()))[0], direction)
        return along, energy(x + h * direction), energy(x - h * direction)

    along, ahead, behind = np.float64(found(x))
    np.testing.assert_allclose(along, (ahead - behind) / (2 * h), rtol=2e-2)


def test_a_convolution_in_a_wider_dtype_gives_cotangents_in_the_dtype_of_its_inputs():
    """jax.vjp has a TypeError there; the truth is float32's, rounded once."""
    x, w = draw(1, 2, 4, 4), draw(3, 2, 2, 2)
    wide = functools.partial(conv(padding="SAME", preferred_element_type=jnp.float32))
    ours = gradients(vjp, wide, x.astype("bfloat16"), w.astype("bfloat16"))
    reference = gradients(
        jax.vjp, conv(padding="SAME"), *(a.astype("bfloat16").astype("float32") for a in (x, w))
    )
    assert [g.dtype for g in ours] == ["bfloat16"] * 2
    assert g1(ours, [r.astype("bfloat16") for r in reference], depth=0)


ORDERS = {
    "polygamma": lambda m: lax.polygamma(m, jnp.float32(2)),
    "regularized_incomplete_beta": lambda a: lax.betainc(a, jnp.float32(2), jnp.float32(0.5)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_jax_has_no_derivative_by_is_refused_and_not_zero(name):
    with pytest.raises(UnsupportedPrimitive, match=name):
        gradients(vjp, ORDERS[name], jnp.float32(2))


@pytest.mark.parametrize("name", CASES)
def test_strict_promotion_changes_nothing(name):
    f, *primals = CASES[name]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        try:
            jax.eval_shape(f, *primals)
        except (ValueError, TypeError):
            pytest.skip("jax refuses the function itself")
        jax.eval_shape(functools.partial(gradients, vjp, f), *primals)


OF_ZERO_SIZE = {
    "cumprod": lambda x: jnp.cumprod(x, 0),
    "prod": lambda x: jnp.prod(x, 1),
    "max": lambda x: jnp.max(x, 1),
    "sort": lambda x: jnp.sort(x, 0),
    "top_k": lambda x: lax.top_k(x, 2)[0],
    "softmax": jax.nn.softmax,
    "a window": lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 2), (1, 1), "VALID"),
    "a product": lambda x: x @ x.T,
    "a sum over nothing": lambda x: x.T @ x,
    "a scatter": lambda x: x.at[:, 1].max(1.0),
    "singular values": lambda x: jnp.linalg.svd(x, compute_uv=False),
    "batched inverse": lambda x: jnp.linalg.inv(x[:, None] * jnp.ones((1, 3, 1))),
    "a convolution": lambda x: lax.conv_general_dilated(x[None], x[None] + 1, (1,), "SAME"),
}


@pytest.mark.parametrize("name", OF_ZERO_SIZE)
def test_arrays_of_size_zero_have_gradients_of_size_zero(name):
    x = jnp.zeros((0, 3))
    assert g4(*both(OF_ZERO_SIZE[name], x))
