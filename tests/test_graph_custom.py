"""Functions with a gradient of their own, in every form that jax lets a person write one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero

from jaxbackprop.graph import UnsupportedPrimitive, custom, grad
from jaxbackprop.graph.walk import STRUCTURE, zeros

FLOAT0 = jax.dtypes.float0


def own_vjp(f, fwd, bwd, **options):
    f = jax.custom_vjp(f)
    f.defvjp(fwd, bwd, **options)
    return f


def own_jvp(f, rule, **options):
    f = jax.custom_jvp(f)
    f.defjvp(rule, **options)
    return f


def kept_where_perturbed():
    """Keeps of each factor only what the other one's gradient needs."""

    def fwd(x, y):
        kept = x.value if y.perturbed else None, y.value if x.perturbed else None
        return x.value * y.value, kept

    def bwd(kept, ct):
        x, y = kept
        return None if y is None else ct * y, None if x is None else ct * x

    return own_vjp(lambda x, y: x * y, fwd, bwd, symbolic_zeros=True)


def told_of_zero_cotangents():
    """Adds 100 where it is told that the second output has the cotangent zero."""

    def bwd(x, cts):
        a, b = cts
        second = 100.0 if isinstance(b, SymbolicZero) else -b * jnp.sin(x)
        return (a * jnp.cos(x) + second,)

    f = lambda x: (jnp.sin(x), jnp.cos(x))  # noqa: E731
    return own_vjp(f, lambda x: (f(x.value), x.value), bwd, symbolic_zeros=True)


def integer_output():
    """Its cotangent arrives as float0; that of an integer input is not looked at."""

    def bwd(i, cts):
        assert cts[1].dtype == FLOAT0
        return cts[0] * i, np.zeros((), FLOAT0)

    f = lambda x, i: (x * i, i + 1)  # noqa: E731
    return own_vjp(f, lambda x, i: (f(x, i), i), bwd)


def linear_of_itself():
    """Σ x, whose tangent is Σ t by the function itself."""
    s = jax.custom_jvp(lambda x: jnp.sum(x))
    s.defjvp(lambda x, t: (s(*x), s(*t)))
    return s


def bilinear_of_itself():
    p = jax.custom_jvp(lambda x, y: x * y)

    @p.defjvp
    def rule(primals, tangents):
        (x, y), (t, u) = primals, tangents
        return p(x, y), jax.jit(jax.checkpoint(p))(t, y) + p(x, u)

    return p


def told_of_zero_tangents():
    """Five times as steep where it is told that y has no tangent."""

    def rule(primals, tangents):
        (x, y), (t, u) = primals, tangents
        return x * y, 5 * t * y if isinstance(u, SymbolicZero) else t * y + x * u

    return own_jvp(lambda x, y: x * y, rule, symbolic_zeros=True)


def with_integers():
    """(x, i) ↦ (x i, i)."""

    def rule(primals, tangents):
        (x, i), (t, _) = primals, tangents
        return (x * i, i), (t * i, np.zeros((), FLOAT0))

    return own_jvp(lambda x, i: (x * i, i), rule)


def closes_over_the_axis_of_vmap(z):
    def row(x):
        return own_vjp(lambda z: z * x, lambda z: (z * x, x), lambda x, ct: (ct * x,))(z)

    return jax.vmap(row)(jnp.arange(3.0)).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def around(f, x, *closed):
    return f(x, *closed)


around.defvjp(
    lambda f, x, *closed: (f(x, *closed), (x, closed)),
    lambda f, kept, ct: (ct * 7, *(ct * kept[0] for _ in kept[1])),
)


def converted_closure(x, y):
    f, closed = jax.closure_convert(lambda z: z * y, x)
    return around(f, x, *closed)


def closes_over_an_array(x):
    """Its residuals are its arguments: counted from behind what is closed over."""
    scale = 2 * np.ones(3, np.float32)
    f = lambda x, w: x * jnp.asarray(scale) * w  # noqa: E731
    return own_vjp(f, lambda x, w: (f(x, w), (x, w)), lambda r, ct: (ct * scale * r[1], None))(
        x, jnp.ones(3)
    ).sum()


none_for_the_second = own_vjp(
    lambda x, t: x * t, lambda x, t: (x * t, t), lambda t, ct: (ct * t, None)
)
only_integers = own_vjp(jnp.int32, lambda x: (jnp.int32(x), None), lambda _, ct: (jnp.nan,))
other_dtype = own_vjp(
    lambda x: 2 * x, lambda x: (2 * x, None), lambda _, ct: ((2 * ct).astype(jnp.float16),)
)
tree = own_vjp(
    lambda p: p["x"] * p["y"][0],
    lambda p: (p["x"] * p["y"][0], p),
    lambda p, ct: ({"x": ct * p["y"][0], "y": None},),
)
times_of_jax = jax.custom_gradient(lambda x: (x**2, lambda ct: (ct * x,)))
quotient = functools.partial(
    jax.custom_derivatives.linear_call, lambda y, x: x / y, lambda y, ct: ct / y
)
beside_a_shared_square = own_vjp(
    lambda z, y: (z * y, z * z, 3),
    lambda z, y: ((z * y, z * z, 3), (z, y)),
    lambda kept, cts: (cts[0] * kept[1] + cts[1] * 2 * kept[0], cts[0] * kept[0]),
)
own_sin = own_vjp(jnp.sin, lambda x: (jnp.sin(x), x), lambda x, ct: (ct * jnp.cos(x),))
s, p = linear_of_itself(), bilinear_of_itself()
XS = jnp.arange(3.0)

CASES = {
    "zeros told, both arguments": (kept_where_perturbed(), (0, 1), (2.0, 3.0), (3, 2)),
    "zeros told, x alone": (kept_where_perturbed(), 0, (2.0, 3.0), 3),
    "zeros told, y alone": (kept_where_perturbed(), 1, (2.0, 3.0), 2),
    "zeros told, jit": (jax.jit(kept_where_perturbed()), 0, (2.0, 3.0), 3),
    "zeros told, in a scan": (
        lambda x, y: jax.lax.scan(lambda c, _: (kept_where_perturbed()(c, y), None), x, None, 3)[0],
        0,
        (2.0, 3.0),
        27,
    ),
    "zero cotangent told": (lambda x: told_of_zero_cotangents()(x)[0], 0, (0.0,), 101),
    "no zero cotangent": (lambda x: sum(told_of_zero_cotangents()(x)), 0, (0.0,), 1),
    "None": (none_for_the_second, (0, 1), (2.0, 3.0), (3, 0)),
    "None, and another path": (
        lambda x, t: none_for_the_second(x, t) + t,
        (0, 1),
        (2.0, 3.0),
        (3, 1),
    ),
    "None alone": (none_for_the_second, 1, (2.0, 3.0), 0),
    "None for a subtree": (
        tree,
        0,
        ({"x": 2.0, "y": (3.0, 4.0)},),
        {"x": 3, "y": (0, 0)},
    ),
    "integer output": (lambda x: integer_output()(x, 3)[0], 0, (2.0,), 3),
    "integer output, used": (lambda x: math.prod(integer_output()(x, 3)), 0, (2.0,), 12),
    "integers only": (lambda x: x * only_integers(x), 0, (2.0,), 2),
    "custom_gradient": (times_of_jax, 0, (3.0,), 3),
    "closure_convert": (converted_closure, (0, 1), (2.0, 3.0), (7, 2)),
    "closed over vmap": (closes_over_the_axis_of_vmap, 0, (1.0,), 3),
    "closed over vmap, in it": (
        lambda x: jax.vmap(lambda z: closes_over_the_axis_of_vmap(z))(x).sum(),
        0,
        (XS,),
        [3, 3, 3],
    ),
    "outputs that the rows of a vmap share, unasked": (
        lambda z: jax.vmap(lambda y: beside_a_shared_square(z, y)[0])(XS).sum(),
        0,
        (1.0,),
        3,
    ),
    "an array closed over": (closes_over_an_array, 0, (XS,), [2, 2, 2]),
    "nondiff_argnums": (lambda x: around(jnp.sin, x), 0, (2.0,), 7),
    "another dtype": (other_dtype, 0, (2.0,), 2),
    "another dtype, summed": (lambda x: other_dtype(x) + 3 * x, 0, (2.0,), 5),
    "linear_call": (lambda y, x: quotient(y, x), 1, (2.0, 3.0), 0.5),
    "a rule of itself": (s, 0, (XS,), [1, 1, 1]),
    "a rule of itself, after another": (lambda x: s(x * x), 0, (XS,), [0, 2, 4]),
    "a rule of itself, in a scan": (
        lambda x: jax.lax.scan(lambda c, r: (c + s(r * x), None), 0.0, x)[0],
        0,
        (XS,),
        [6, 6, 6],
    ),
    "bilinear of itself": (p, (0, 1), (2.0, 3.0), (3, 2)),
    "bilinear of itself, one argument": (p, 0, (2.0, 3.0), 3),
    "bilinear of itself, a constant under vmap": (
        lambda x: jax.vmap(lambda z: p(z, 3.0) + p(2.0, 3.0))(x).sum(),
        0,
        (XS,),
        [3, 3, 3],
    ),
    "a custom_jvp of the jvp of a custom_vjp": (
        own_jvp(own_sin, lambda x, t: jax.jvp(own_sin, x, t)),
        0,
        (0.0,),
        1,
    ),
    "zero tangent told": (told_of_zero_tangents(), 0, (2.0, 3.0), 15),
    "no zero tangent": (told_of_zero_tangents(), (0, 1), (2.0, 3.0), (3, 2)),
    "integer tangent": (lambda x: with_integers()(x, 3)[0], 0, (2.0,), 3),
    "frexp": (lambda x: jnp.frexp(x)[0], 0, (2.0,), 0.25),
    "ldexp": (lambda x: jnp.ldexp(x, 3), 0, (2.0,), 8),
    "ldexp under vmap": (
        lambda x: jax.vmap(lambda i: jnp.ldexp(x, i))(jnp.arange(3)).sum(),
        0,
        (2.0,),
        7,
    ),
}


if jax.__version_info__ >= (0, 12):  # there these are no custom_jvp
    CASES = {name: case for name, case in CASES.items() if "exp" not in name}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_of_ones_own_is_used_as_jax_uses_it(name):
    f, argnums, args, expected = CASES[name]
    for found in (grad(f, argnums)(*args), jax.jit(grad(f, argnums))(*args)):
        jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.float32, expected))


NESTED = {
    "checkpoint": jax.checkpoint(own_sin),
    "cond": lambda x: jax.lax.cond(x > 0, own_sin, jnp.cos, x),
    "scan": lambda x: jax.lax.scan(lambda c, _: (own_sin(c), None), x, None, 3)[0],
    "vmap of checkpoint": lambda x: jax.vmap(jax.checkpoint(own_sin))(x * jnp.ones(2)).sum(),
}


@pytest.mark.parametrize("name", NESTED)
def test_forward_over_reverse_passes_through_a_rule_wherever_it_stands(name):
    f, x = NESTED[name], jnp.float32(0.5)
    found = jax.jvp(grad(f), (x,), (jnp.ones_like(x),))
    expected = jax.jvp(jax.grad(f), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("own", [jax.custom_jvp, jax.custom_vjp])
def test_a_value_that_is_closed_over_is_refused_not_taken_for_constant(own):
    def f(x):
        g = own(lambda z: z * x)
        if own is jax.custom_vjp:
            g.defvjp(lambda z: (z, None), lambda _, ct: (ct,))
        else:
            g.defjvp(lambda z, t: (*z, *t))
        return g(3.0)

    with pytest.raises(UnsupportedPrimitive, match="pass it to the function as an argument"):
        grad(jax.jit(f))(2.0)
    with pytest.raises(jax.errors.UnexpectedTracerError):  # jax's own, as in jax.grad
        grad(f)(2.0)


def inverted_flags(equation, inputs, active):
    return custom.custom_vjp(equation, inputs, [not a for a in active])


def zeros_never_told(equation, inputs, active):
    outputs, pull = custom.custom_vjp(equation, inputs, active)
    return outputs, lambda cts: pull(
        [zeros(v.aval) if ct is None else ct for v, ct in zip(equation.outvars, cts, strict=True)]
    )


def none_passed_on(equation, inputs, active):
    outputs, pull = custom.custom_vjp(equation, inputs, active)
    return outputs, lambda cts: [jnp.ones(()) if c is None else c for c in pull(cts)]


WRONG = {
    "zeros told, x alone": inverted_flags,
    "zeros told, y alone": inverted_flags,
    "zero cotangent told": zeros_never_told,
    "None": none_passed_on,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reading_of_a_rule_is_noticed(name, monkeypatch):
    monkeypatch.setitem(STRUCTURE, "custom_vjp_call", WRONG[name])
    with pytest.raises((AssertionError, TypeError)):
        test_a_rule_of_ones_own_is_used_as_jax_uses_it(name)


def test_a_rule_takes_from_a_constant_of_its_graph_as_from_an_array():
    """Under jit it is NumPy's, which takes no traced index; `odeint` does so."""
    looked_up = own_vjp(
        lambda x, table: x * table.sum(),
        lambda x, table: (x * table.sum(), table),
        lambda table, ct: (jax.lax.fori_loop(0, 2, lambda i, s: s + ct * table[i], 0.0), None),
    )
    assert grad(jax.jit(lambda x: looked_up(x, jnp.array([2.0, 3.0]))))(1.0) == 5
