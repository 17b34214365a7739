"""Random JAX programs: structural operations around a little mathematics, made from a seed.

A program is a *tree* of names, printed as nested tuples: a name of `STEPS` is one step
x ↦ step(x, w) of three numbers, (name of `WRAPS`, body, …) a structural operation around bodies,
and a body is a tuple of trees, one after the other.

    program(7)                              the program of a seed
    program(7, kinds=SMOOTH)                of some operations only
    build((("scan", ("sin", "dot")),))      the program of a description, as a failure prints it

To add an operation: a function with `@step` or `@wrap`, whose words after the name's are its kinds.
"""

import functools
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, PartitionSpec

Tree = Any  # a name, or (name, body, …)
Step = Callable[[jax.Array, dict], jax.Array]  # x, w: {"v": three numbers, "M": three by three}


class Program(NamedTuple):
    """f(*args) is a scalar; the description is what `build` makes it of."""

    f: Callable
    args: tuple
    tree: tuple[Tree, ...]

    @property
    def description(self) -> str:
        return f"build({self.tree!r})"

    @property
    def names(self) -> set[str]:
        return set(names(self.tree))


STEPS: dict[str, Step] = {}
WRAPS: dict[str, tuple[Callable[..., Step], int]] = {}  # and how many bodies they take
KINDS: dict[str, frozenset[str]] = {}


def step(*kinds: str) -> Callable:
    """Enter x ↦ step(x, w); without kinds it is smooth."""

    def enter(function: Step) -> Step:
        name = function.__name__.strip("_")
        STEPS[name], KINDS[name] = function, frozenset(kinds or ("smooth",))
        return function

    return enter


def wrap(*kinds: str, bodies: int = 1) -> Callable:
    """Enter a function that makes one step of the steps of its bodies."""

    def enter(function: Callable) -> Callable:
        name = function.__name__.strip("_")
        WRAPS[name], KINDS[name] = (function, bodies), frozenset(kinds or ("smooth",))
        return function

    return enter


# --- steps: elementwise ---

for _name, _function in {
    "sin": lambda x, w: jnp.sin(x),
    "cos": lambda x, w: jnp.cos(x) * w["v"],
    "tanh": lambda x, w: jnp.tanh(x + w["v"]),
    "bell": lambda x, w: jnp.exp(-x * x),
    "logistic": lambda x, w: jax.nn.sigmoid(x),
    "softplus": lambda x, w: jax.nn.softplus(x) - 1,
    "gelu": lambda x, w: jax.nn.gelu(x),
    "swish": lambda x, w: jax.nn.swish(x),
    "mul": lambda x, w: x * w["v"],
    "add": lambda x, w: x - w["v"],
    "div": lambda x, w: x / (1 + w["v"] ** 2),
    "square": lambda x, w: x * x / (1 + x * x),
    "sqrt": lambda x, w: jnp.sqrt(1 + x * x) - 1,
    "log1p": lambda x, w: jnp.log1p(x * x),
    "erf": lambda x, w: lax.erf(x) + 0.1 * lax.expm1(-x * x),
    "atan2": lambda x, w: jnp.arctan2(x, 2 + w["v"]),
    "logaddexp": lambda x, w: jnp.logaddexp(x, w["v"]) - 1,
    "pow": lambda x, w: (1 + x * x) ** (0.3 * w["v"]) - 0.2 * x,
    "frexp": lambda x, w: jnp.frexp(1.5 + 0.3 * jnp.sin(x))[0],
    "ldexp": lambda x, w: jnp.ldexp(x, -1) + 0.1,
    # contractions
    "dot": lambda x, w: w["M"] @ x,
    "tod": lambda x, w: x @ w["M"],
    "outer": lambda x, w: jnp.outer(jnp.sin(x), w["v"]) @ jnp.cos(x) / 2,
    "einsum": lambda x, w: jnp.einsum("ij,j,i->j", w["M"], jnp.tanh(x), w["v"]),
    "convolve": lambda x, w: jnp.convolve(x, w["v"] / 2, "same"),
    "solve": lambda x, w: jnp.linalg.solve(w["M"] + 3 * jnp.eye(3, dtype=x.dtype), x),
    # indexing
    "reverse": lambda x, w: x[::-1],
    "gather": lambda x, w: x[jnp.array([2, 0, 0])],
    "out_of_bounds": lambda x, w: x + x[jnp.array([5, -7, 1])],
    "set": lambda x, w: x.at[1].set(w["v"][0]),
    "scatter_add": lambda x, w: x.at[jnp.array([0, 0])].add(0.3 * w["v"][:2]),
    "dynamic_slice": lambda x, w: jnp.resize(lax.dynamic_slice(x, (2,), (2,)), 3) * w["v"],
    "dynamic_update": lambda x, w: lax.dynamic_update_slice(x, 0.5 * w["v"][:2], (1,)),
    "concatenate": lambda x, w: jnp.concatenate([x[1:], jnp.sin(x[:1])]),
    "roll": lambda x, w: jnp.roll(x, 1) * 0.9,
    "pad": lambda x, w: jnp.pad(x[1:2], 1, constant_values=0.5) + 0.5 * x,
    # reductions
    "centred": lambda x, w: 2 * x - jnp.mean(x),
    "softmax": lambda x, w: jax.nn.softmax(x) * 2 - w["v"],
    "logsumexp": lambda x, w: x - jax.nn.logsumexp(x),
    "standardised": lambda x, w: (x - x.mean()) / jnp.sqrt(x.var() + 0.5),
    "norm": lambda x, w: x / jnp.linalg.norm(jnp.append(x, 1.0)),
    "cumsum": lambda x, w: jnp.cumsum(x) / 2,
    "cumprod": lambda x, w: jnp.cumprod(jnp.tanh(x)),
    "prod": lambda x, w: x + 0.3 * jnp.prod(jnp.sin(x)),
    # what is no mathematics
    "named": lambda x, w: checkpoint_name(jnp.sin(x), "a"),
    "stop": lambda x, w: x * jnp.cos(x) + lax.stop_gradient(jnp.float32(0.1)).astype(x.dtype),
    "barrier": lambda x, w: lax.optimization_barrier(x),
}.items():
    STEPS[_name], KINDS[_name] = _function, frozenset({"smooth"})

for _name, _function in {
    "relu": lambda x, w: jax.nn.relu(x),
    "leaky": lambda x, w: jax.nn.leaky_relu(x) + 0.1,
    "elu": lambda x, w: jax.nn.elu(x),
    "abs": lambda x, w: jnp.abs(x) - 0.5,
    "maximum": lambda x, w: jnp.maximum(x, w["v"]),
    "clip": lambda x, w: jnp.clip(x, -0.6, 0.7),
    "where": lambda x, w: jnp.where(x > 0.1, jnp.sin(x), 0.3 * x),
    "max": lambda x, w: 0.5 * x + jnp.max(x),
    "min_norm": lambda x, w: x / (1 + jnp.linalg.norm(x + w["v"], -jnp.inf)),
    "pooled": lambda x, w: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "SAME") * w["v"],
    "cummin": lambda x, w: lax.cummin(x) + 0.5 * x,
    "scatter_max": lambda x, w: x.at[jnp.array([0, 0, 2])].max(w["v"]),
    "segment_max": lambda x, w: (
        x + jax.ops.segment_max(x, jnp.array([0, 1, 0]), 2)[jnp.array([1, 0, 0])]
    ),
    "sort": lambda x, w: jnp.sort(x) * w["v"],
    "sort_by_keys": lambda x, w: lax.sort((w["v"], x), num_keys=1)[1],
    "top": lambda x, w: jnp.append(lax.top_k(x, 2)[0], x[0]) * 0.8,
    "median": lambda x, w: x - 0.5 * jnp.median(x),
}.items():
    STEPS[_name], KINDS[_name] = _function, frozenset({"kinked"})


@step("stopped")
def stop_gradient(x, w):
    return x * lax.stop_gradient(jnp.sin(x)) + 0.2


@step("stopped")
def straight_through(x, w):
    return x + lax.stop_gradient(jnp.round(x) - x)


@step("integers")
def integer_cast(x, w):
    return x * (1 + (2 * x).astype(jnp.int32)).astype(x.dtype) / 2


@step("integers")
def argmax(x, w):
    return x[jnp.argmax(x)] + 0.5 * x


@step("integers")
def one_hot(x, w):
    return x + jax.nn.one_hot(jnp.argmin(x), 3, dtype=x.dtype) * x[0]


@step("integers")
def floor(x, w):
    return jnp.floor(2 * x) * w["v"] / 2 + 0.3 * x


@step("random")
def normal(x, w):
    return x + 0.3 * jax.random.normal(jax.random.key(3), (3,), x.dtype) * w["v"]


@step("random")
def dropout(x, w):
    keep = jax.random.bernoulli(jax.random.key(5), 0.6, (3,))
    return jnp.where(keep, x / 0.6, 0) + 0.1


@step("random")
def randint(x, w):
    return x[jax.random.randint(jax.random.key(1), (3,), 0, 3)]


@step("effects")
def debug_print(x, w):
    jax.debug.print("{}", x)
    return x + 0.1


@step("effects")
def debug_callback(x, w):
    jax.debug.callback(lambda *_: None, x, w)
    return jnp.sin(x)


@step("complex")
def fft(x, w):
    return jnp.fft.ifft(jnp.fft.fft(x) * lax.complex(w["v"], 0.5 * w["v"])).real


@step("precision")
def wider(x, w):
    with jax.enable_x64(True):
        return jnp.sin(x.astype("float64") * w["v"].astype("float64")).astype(x.dtype)


@step("precision")
def half(x, w):
    return x.astype(jnp.bfloat16).astype(x.dtype) * 0.9


@step("precision")
def eighth(x, w):
    return x + 0.1 * x.astype(jnp.float8_e4m3fn).astype(x.dtype)


@step()
def while_forward(x, w):
    """A loop of unknown length on what is not differentiated."""
    y = lax.while_loop(lambda y: jnp.sum(y) > 1, lambda y: 0.5 * y, jnp.arange(3, dtype=x.dtype))
    return x * jnp.sin(y)


# --- calls, loops and branches ---


@wrap()
def jit(body):
    return jax.jit(body)


@wrap()
def jit_closure(body):
    return lambda x, w: jax.jit(lambda x: body(x, w))(x)


@wrap()
def scan(body):
    return lambda x, w: lax.scan(lambda c, _: (body(c, w), None), x, None, length=3)[0]


@wrap()
def scan_slices(body):
    def run(x, w):
        def turn(c, row):
            c = body(c, w) + 0.3 * row
            return c, jnp.sin(c * row)

        c, ys = lax.scan(turn, x, w["M"], reverse=True)
        return c + ys.mean(0)

    return run


@wrap()
def scan_weights(body):
    """The weights are carried, and change."""

    def run(x, w):
        def turn(carry, _):
            x, w, i = carry
            return (body(x, w), {**w, "v": 0.9 * w["v"]}, i + 1), i

        (x, w, _), _ = lax.scan(turn, (x, w, 0), None, length=2)
        return x + 0.1 * w["v"]

    return run


@wrap()
def scan_unrolled(body):
    return lambda x, w: (
        lax.scan(lambda c, _: (body(c, w), c), x, None, length=4, unroll=2)[1].sum(0) / 4
    )


@wrap()
def scan_empty(body):
    return lambda x, w: 1.1 * lax.scan(lambda c, _: (body(c, w), None), x, None, length=0)[0]


@wrap()
def map(body):
    return lambda x, w: lax.map(lambda row: body(row * x, w), w["M"]).sum(0)


@wrap()
def fori(body):
    return lambda x, w: lax.fori_loop(0, 3, lambda i, c: body(c + 0.1 * i, w), x)


@wrap("kinked", bodies=2)
def cond(yes, no):
    return lambda x, w: lax.cond(x[0] > 0.05, yes, no, x, w)


@wrap(bodies=3)
def switch(*branches):
    return lambda x, w: lax.switch(jnp.int32(1) + (x.size > 4), branches, x, w)


@wrap(bodies=2)
def cond_in_scan(even, odd):
    def turn(c, i, w):
        return lax.cond(i % 2 == 0, lambda c: even(c, w), lambda c: odd(c, w), c), None

    return lambda x, w: lax.scan(lambda c, i: turn(c, i, w), x, jnp.arange(3))[0]


# --- mutable arrays, made by f (jax takes no cond that writes to one, inside of a loop or vmap) ---


@wrap("mutable")
def written(body):
    def run(x, w):
        ref = jax.new_ref(x)
        ref[...] = body(ref[...], w)
        ref[0] += w["v"][1]
        ref[1:] = jnp.sin(ref[:2])
        return ref[...]

    return run


@wrap("mutable")
def written_in_jit(body):
    def run(x, w):
        ref = jax.new_ref(0.5 * x)
        put = jax.jit(lambda ref, x: ref.__setitem__(..., body(ref[...] + x, w)))
        put(ref, x)
        put(ref, w["v"])
        return jax.freeze(ref)

    return run


@wrap("mutable")
def written_in_scan(body):
    def run(x, w):
        ref = jax.new_ref(jnp.zeros_like(x))

        def turn(c, i):
            ref[i] += jnp.sin(c[0])
            return body(c, w), ref[...]

        c, ys = lax.scan(turn, x, jnp.arange(3))
        return 0.3 * (c + ys[1] + ref[...])

    return run


@wrap()
def while_stopped(body):
    """As many turns as the values ask for, and no gradient through them."""

    def run(x, w):
        start, w_ = lax.stop_gradient((x, w))
        go = lambda c: (c[1] < 3) & (jnp.sum(c[0]) < 2)  # noqa: E731
        end, _ = lax.while_loop(go, lambda c: (body(c[0], w_), c[1] + 1), (start, 0))
        return x * end

    return run


# --- outputs that nobody asks for, or that do not follow what is differentiated ---


def _beside(body):
    """x ↦ (body's step, and what has no way back, an infinite slope, and an integer)."""

    def run(x, w):
        go, turn = lambda c: c[1] < 2, lambda c: (body(c[0], w), c[1] + 1)
        end, turns = lax.while_loop(go, turn, (x, 0))
        return body(x, w), (end, jnp.sqrt(x - x), turns)

    return run


@wrap("unasked")
def beside_jit(body):
    return lambda x, w: jax.jit(_beside(body))(x, w)[0]


@wrap("unasked")
def beside_checkpoint(body):
    return lambda x, w: jax.checkpoint(_beside(body))(x, w)[0]


@wrap("unasked")
def beside_scan(body):
    return lambda x, w: lax.scan(lambda c, _: _beside(body)(c, w), x, None, length=2)[0]


@wrap("unasked")
def beside_carry(body):
    def run(x, w):
        def turn(c, _):
            out, (end, slope, turns) = _beside(body)(c[0], w)
            return (out, c[1] + slope, end, c[3] + turns), None

        return lax.scan(turn, (x, x, x, 0), None, length=2)[0][0]

    return run


@wrap("unasked", bodies=2)
def beside_cond(yes, no):
    return lambda x, w: lax.cond(w["v"][0] > 0.6, _beside(yes), _beside(no), x, w)[0]


@wrap("unasked")
def while_beside(body):
    """A loop of unknown length; what it makes of x is not used, or only the number of turns."""

    def run(x, w):
        go = lambda c: (c[2] < 3) & (jnp.sum(c[1]) < 2)  # noqa: E731
        turn = lambda c: (body(c[0], w), jnp.cos(c[1]), c[2] + 1)  # noqa: E731
        _, y, turns = lax.while_loop(go, turn, (x, jnp.arange(3, dtype=x.dtype), 0))
        return x * y + x[turns % 3]

    return run


# --- checkpoints ---


def _checkpointed(**options: Any) -> Callable[[Step], Step]:
    return lambda body: jax.checkpoint(body, **options)


_POLICIES = jax.checkpoint_policies
for _name, _options in {
    "checkpoint": {},
    "checkpoint_dots": {"policy": _POLICIES.dots_saveable},
    "checkpoint_everything": {"policy": _POLICIES.everything_saveable},
    "checkpoint_named": {"policy": _POLICIES.save_only_these_names("a")},
    "checkpoint_no_cse": {"prevent_cse": False, "policy": _POLICIES.nothing_saveable},
}.items():
    WRAPS[_name], KINDS[_name] = (_checkpointed(**_options), 1), frozenset({"smooth"})


@wrap()
def checkpoint_scan(body):
    """A checkpoint inside a scan's body."""
    turn = jax.checkpoint(body)
    return lambda x, w: lax.scan(lambda c, _: (turn(c, w), None), x, None, length=2)[0]


@wrap()
def checkpoint_around_scan(body):
    """A policy that saves of each step of a scan what has a name."""

    def run(x, w):
        def turn(c, row):
            c = checkpoint_name(body(c, w), "a") + 0.3 * row
            return jnp.sin(c), checkpoint_name(c * row, "a")

        c, ys = lax.scan(turn, x, w["M"], reverse=True)
        return c + ys.mean(0)

    return jax.checkpoint(run, policy=_POLICIES.save_only_these_names("a"))


@wrap()
def checkpoint_static(body):
    inner = jax.checkpoint(lambda n, x, w: body(x, w) / n, static_argnums=(0,))
    return lambda x, w: inner(2, x, w)


# --- functions with rules of their own; each rule is the right one ---


@wrap("custom_jvp")
def jvp_plain(body):
    inner = jax.custom_jvp(body)
    inner.defjvp(lambda primals, tangents: jax.jvp(body, primals, tangents))
    return inner


@wrap("custom_jvp")
def jvp_partials(body):
    @jax.custom_jvp
    def product(x, y):
        return jnp.sin(x) * y

    product.defjvps(lambda t, out, x, y: jnp.cos(x) * y * t, lambda t, out, x, y: jnp.sin(x) * t)
    return lambda x, w: product(body(x, w), w["v"]) + product(x, 0.5)


@wrap("custom_jvp")
def jvp_symbolic(body):
    inner = jax.custom_jvp(body)

    def rule(primals, tangents):
        filled = jax.tree.map(
            lambda t: jnp.zeros(t.shape, t.dtype) if isinstance(t, SymbolicZero) else t,
            tangents,
            is_leaf=lambda t: isinstance(t, SymbolicZero),
        )
        return jax.jvp(body, primals, filled)

    inner.defjvp(rule, symbolic_zeros=True)
    return lambda x, w: inner(x, {**w, "v": jnp.ones(3, x.dtype) / 2}) + 0.1 * w["v"]


@wrap("custom_jvp")
def jvp_nondiff(body):
    @functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
    def inner(g, n, x, w):
        return g(x, w) * n

    @inner.defjvp
    def rule(g, n, primals, tangents):
        out, t = jax.jvp(g, primals, tangents)
        return out * n, t * n

    return lambda x, w: inner(body, 0.5, x, w)


@wrap("custom_jvp")
def jvp_of_itself(body):
    """A linear function: its rule is the function, of the tangents."""

    @jax.custom_jvp
    def inner(x):
        return jnp.cumsum(x) / 2

    inner.defjvp(lambda primals, tangents: (inner(*primals), inner(*tangents)))
    return lambda x, w: inner(body(x, w)) + inner(jnp.ones(3, x.dtype))


@wrap("custom_jvp")
def jvp_integer(body):
    """An integer goes in, and one comes out."""

    @jax.custom_jvp
    def inner(x, w, i):
        return body(x, w) * (1 + i), i + 1

    @inner.defjvp
    def rule(primals, tangents):
        x, w, i = primals
        out, t = jax.jvp(body, (x, w), tangents[:2])
        zero = np.zeros((), jax.dtypes.float0)
        return (out * (1 + i), i + 1), (t * (1 + i), zero)

    def run(x, w):
        out, i = inner(x, w, jnp.int32(1))
        return out / i

    return run


@wrap("custom_jvp")
def jvp_numbers(body):
    """Beside an array it returns numbers that stand in its graph."""
    inner = jax.custom_jvp(lambda x, w: (body(x, w), 2, 0.5, True))

    @inner.defjvp
    def rule(primals, tangents):
        out, t = jax.jvp(body, primals, tangents)
        none = np.zeros((), jax.dtypes.float0)
        return (out, 2, 0.5, True), (t, none, 0.0, none)

    def run(x, w):
        out, two, half, true = inner(x, w)
        return out * two * half * true

    return run


@wrap("custom_vjp")
def vjp_numbers(body):
    inner = jax.custom_vjp(lambda x, w: (body(x, w), 2, 0.5, True))

    def fwd(x, w):
        out, pull = jax.vjp(body, x, w)
        return (out, 2, 0.5, True), pull

    inner.defvjp(fwd, lambda pull, cts: pull(cts[0]))

    def run(x, w):
        out, two, half, true = inner(x, w)
        return out * two * half * true

    return run


@wrap("custom_vjp")
def vjp_plain(body):
    inner = jax.custom_vjp(body)
    inner.defvjp(lambda x, w: jax.vjp(body, x, w), lambda pull, ct: pull(ct))
    return inner


@wrap("custom_vjp")
def vjp_again(body):
    """Keeps the arguments and computes anew."""
    inner = jax.custom_vjp(body)
    inner.defvjp(lambda x, w: (body(x, w), (x, w)), lambda kept, ct: jax.vjp(body, *kept)[1](ct))
    return inner


@wrap("custom_vjp")
def vjp_symbolic(body):
    """Keeps what is perturbed only; the cotangent may be symbolic too."""
    inner = jax.custom_vjp(lambda x, v, M: (body(x, {"v": v, "M": M}), 2 * x))

    def fwd(x, v, M):
        values = x.value, v.value, M.value
        kept = [a.value if a.perturbed else None for a in (x, v, M)]
        return inner(*values), (values, kept)

    def bwd(residuals, cts):
        (x, v, M), kept = residuals
        ct, ct2 = (None if isinstance(ct, SymbolicZero) else ct for ct in cts)
        pull = jax.vjp(lambda x, v, M: body(x, {"v": v, "M": M}), x, v, M)[1]
        found = pull(jnp.zeros(3, x.dtype) if ct is None else ct)
        found = (found[0] + (0 if ct2 is None else 2 * ct2), *found[1:])
        return tuple(None if k is None else g for k, g in zip(kept, found, strict=True))

    inner.defvjp(fwd, bwd, symbolic_zeros=True)
    return lambda x, w: inner(x, jnp.ones(3, x.dtype) / 2, w["M"])[0] + 0.1 * w["v"]


@wrap("custom_vjp")
def vjp_none(body):
    """No cotangent for the weights, which are used outside as well."""
    stopped = lambda x, w: body(x, lax.stop_gradient(w))  # noqa: E731
    inner = jax.custom_vjp(stopped)
    inner.defvjp(
        lambda x, w: jax.vjp(lambda x: stopped(x, w), x), lambda pull, ct: (*pull(ct), None)
    )
    return lambda x, w: inner(x, w) + 0.3 * w["v"]


@wrap("custom_vjp")
def vjp_integer(body):
    """An integer goes in, and one comes out: their cotangents are none."""
    inner = jax.custom_vjp(lambda x, w, i: (body(x, w) * i, i + 1))

    def fwd(x, w, i):
        out, pull = jax.vjp(lambda x, w: body(x, w) * i, x, w)
        return (out, i + 1), (pull, i)

    def bwd(kept, cts):
        pull, i = kept
        return (*pull(cts[0]), np.zeros(i.shape, jax.dtypes.float0))

    inner.defvjp(fwd, bwd)

    def run(x, w):
        out, i = inner(x, w, jnp.int32(2))
        return out / i

    return run


@wrap("custom_vjp")
def vjp_nondiff(body):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2))
    def inner(g, x, n, w):
        return g(x, w) * n

    def fwd(g, x, n, w):
        return g(x, w) * n, (x, w)

    def bwd(g, n, kept, ct):
        return jax.vjp(g, *kept)[1](ct * n)

    inner.defvjp(fwd, bwd)
    return lambda x, w: inner(body, x, 0.5, w)


@wrap("custom_vjp")
def vjp_gradient(body):
    """jax.custom_gradient."""

    @jax.custom_gradient
    def inner(x, w):
        return jax.vjp(body, x, w)

    return inner


@wrap("custom_vjp")
def vjp_converted(body):
    """jax.closure_convert: what a function closes over becomes its arguments."""

    def run(x, w):
        g, consts = jax.closure_convert(lambda x: body(x, w), x)
        inner = jax.custom_vjp(lambda x, *consts: g(x, *consts))
        inner.defvjp(lambda *args: jax.vjp(g, *args), lambda pull, ct: pull(ct))
        return inner(x, *consts)

    return run


@wrap("custom_vjp")
def vjp_closure(body):
    """A rule that closes over arrays."""
    z = jnp.arange(3, dtype=jnp.float32)
    inner = jax.custom_vjp(lambda x: z * x)
    inner.defvjp(lambda x: (z * x, None), lambda _, ct: (z.astype(ct.dtype) * ct,))
    return lambda x, w: inner(body(x, w)).astype(x.dtype)


@wrap("custom_vjp")
def vjp_remat(body):
    inner = jax.custom_vjp(body)
    inner.defvjp(
        lambda x, w: (body(x, w), (x, w)),
        lambda kept, ct: jax.vjp(body, *kept)[1](ct),
        optimize_remat=True,
    )
    return inner


@wrap("dishonest")
def vjp_clipped(body):
    """The gradient is not the function's: it is cut, and rounded to another type."""
    inner = jax.custom_vjp(body)

    def bwd(kept, ct):
        return jax.vjp(body, *kept)[1](jnp.clip(2 * ct, -0.5, 0.5))

    inner.defvjp(lambda x, w: (body(x, w), (x, w)), bwd)
    return inner


@wrap("dishonest")
def jvp_doubled(body):
    inner = jax.custom_jvp(body)
    inner.defjvp(
        lambda p, t: tuple(k * v for k, v in zip((1, 2), jax.jvp(body, p, t), strict=True))
    )
    return inner


# --- differentiation inside ---


@wrap("higher")
def inner_grad(body):
    def run(x, w):
        return x + 0.3 * jax.grad(lambda x: jnp.sum(body(x, w)))(x)

    return run


@wrap("higher")
def inner_jvp(body):
    return lambda x, w: sum(jax.jvp(lambda x: body(x, w), (x,), (w["v"],))) / 2


@wrap("higher")
def inner_linearize(body):
    def run(x, w):
        out, push = jax.linearize(lambda x: body(x, w), x)
        return out + 0.2 * push(w["v"])

    return run


# --- many at once ---


def _three(x, w):
    return jnp.stack([x, 0.5 * x + 0.1, x * w["v"]])


@wrap()
def vmap(body):
    return lambda x, w: jax.vmap(body, (0, None))(_three(x, w), w).mean(0)


@wrap()
def vmap_axes(body):
    """Over the weights as well, and along other axes."""

    def run(x, w):
        many = {"v": _three(w["v"], w), "M": w["M"]}
        return jax.vmap(body, (1, {"v": 0, "M": None}), 1)(_three(x, w).T, many).mean(1)

    return run


def _collective(finish: Callable) -> Callable[[Step], Step]:
    def make(body: Step) -> Step:
        def one(x, w):
            return finish(body(x, w))

        return lambda x, w: jax.vmap(one, (0, None), axis_name="i")(_three(x, w), w).mean(0)

    return make


for _name, _function in {
    "psum": lambda y: lax.psum(y, "i") / 3,
    "pmean": lambda y: y - 0.5 * lax.pmean(y, "i"),
    "all_gather": lambda y: lax.all_gather(y, "i").T @ jnp.sin(y),
    "ppermute": lambda y: y * lax.ppermute(y, "i", [(0, 1), (1, 2), (2, 0)]),
    "psum_scatter": lambda y: y + lax.psum_scatter(y * y, "i", tiled=True),
    "all_to_all": lambda y: jnp.sin(lax.all_to_all(y, "i", 0, 0, tiled=True)),
    "axis_index": lambda y: y * (1 + lax.axis_index("i")).astype(y.dtype),
}.items():
    WRAPS[_name], KINDS[_name] = (_collective(_function), 1), frozenset({"collective"})


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:1]), ("d",))


@wrap("sharded")
def shard_map(body):
    along, whole = PartitionSpec("d"), PartitionSpec()
    inner = jax.shard_map(body, mesh=_mesh(), in_specs=(along, whole), out_specs=along)
    return jax.jit(inner)


@wrap("sharded")
def shard_psum(body):
    def inner(x, w):
        y = body(x, w)
        return y + 0.3 * lax.psum(jnp.sum(y), "d")

    along, whole = PartitionSpec("d"), PartitionSpec()
    return jax.jit(jax.shard_map(inner, mesh=_mesh(), in_specs=(along, whole), out_specs=along))


ALL = frozenset(KINDS)


def of_kind(*kinds: str) -> frozenset[str]:
    """The names of operations that are of these kinds and no other."""
    return frozenset(name for name, own in KINDS.items() if own <= set(kinds))


# Smooth in every argument: differences and second derivatives are those of the function.
SMOOTH = of_kind("smooth", "custom_jvp", "custom_vjp", "collective", "sharded", "complex")


# --- programs ---


def build(tree: tuple[Tree, ...], seed: int = 0) -> Program:
    """The program of a description; the seed decides the arguments."""
    whole = _sequence(tree)
    draw = np.random.default_rng(seed)
    x, v, M = draw.uniform(-1, 1, 3), draw.uniform(0.3, 1, 3), draw.uniform(-0.6, 0.6, (3, 3))
    x, v, M = (jnp.asarray(a, jnp.float32) for a in (x, v, M))
    ends = np.float32([0.7, -1.1, 0.4])

    def f(x, w):
        return jnp.sum(whole(x, w) * ends.astype(x.dtype))

    return Program(f, (x, {"v": v, "M": M}), tree)


def program(seed: int, kinds: Collection[str] = ALL, size: int = 5) -> Program:
    """A program of about `size` operations or fewer, whose names are among `kinds`.

    Each name is in one of any len(kinds) seeds in a row.
    """
    draw = random.Random(seed)
    steps, wraps = (sorted(set(kinds) & set(table)) for table in (STEPS, WRAPS))
    chosen = sorted(kinds)[seed % len(kinds)]

    def tree(name: str, budget: int, depth: int) -> Tree:
        if name in STEPS:
            return name
        count = WRAPS[name][1]
        share = max(1, (budget - 1) // count)
        return (name, *(body(draw.randint(1, share), depth + 1) for _ in range(count)))

    def body(budget: int, depth: int, *first: Tree) -> tuple[Tree, ...]:
        trees = [*first]
        budget -= len([*names(tuple(trees))])
        while not trees or (budget > 0 and len(trees) < 3):
            wrapped = depth < 3 and budget > 1 and wraps and draw.random() < 0.6
            trees.append(tree(draw.choice(wraps if wrapped else steps), budget, depth))
            budget -= len([*names((trees[-1],))])
        draw.shuffle(trees)
        return tuple(trees)

    return build(body(draw.randint(2, size), 0, tree(chosen, size, 0)), seed)


def names(tree: tuple[Tree, ...]) -> Iterator[str]:
    """The names in a body, from the outside in."""
    for node in tree:
        if isinstance(node, str):
            yield node
        else:
            yield node[0]
            for body in node[1:]:
                yield from names(body)


def smaller(tree: tuple[Tree, ...]) -> Iterator[tuple[Tree, ...]]:
    """Bodies that are one thing simpler."""
    for k, node in enumerate(tree):
        before, after = tree[:k], tree[k + 1 :]
        if len(tree) > 1:
            yield (*before, *after)
        if isinstance(node, str):
            if node != "sin":
                yield (*before, "sin", *after)
            continue
        for j, body in enumerate(node[1:], 1):
            yield (*before, *body, *after)
            for less in smaller(body):
                yield (*before, (*node[:j], less, *node[j + 1 :]), *after)


def minimised(found: Program, fails: Callable[[Program], bool], seed: int = 0) -> Program:
    """The smallest program like it that fails as well."""
    while True:
        for tree in smaller(found.tree):
            candidate = build(tree, seed)
            if fails(candidate):
                found = candidate
                break
        else:
            return found


def _sequence(trees: tuple[Tree, ...]) -> Step:
    steps = [_step(tree) for tree in trees]
    return lambda x, w: functools.reduce(lambda x, step: step(x, w), steps, x)


def _step(tree: Tree) -> Step:
    if isinstance(tree, str):
        return STEPS[tree]
    name, *bodies = tree
    return WRAPS[name][0](*(_sequence(body) for body in bodies))
