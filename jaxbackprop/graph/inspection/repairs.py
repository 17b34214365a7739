"""What to write instead, where an operation stands at a singular point or at its edge.

Each function below is a repair: its parameters are the operands of a call, its body is the text
that a user is shown, and the function itself is what is run to check it. A repair gives finite
numbers and slopes, and changes neither where they were finite. The mask always stands before the
singular operation too, since 0 · ∞ on the way back is NaN (the "double where"); it is written so
that a NaN that was given stays one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.inspection.rewriting import bind, own_text, text, user_call
from jaxbackprop.graph.lines import Expression
from jaxbackprop.graph.rules import UnsupportedPrimitive
from jaxbackprop.graph.walk import backward, forward


class Remedy(NamedTuple):
    """A repair: of which operation, where a user calls it by one of these names, and the reason.

    `before` and `after` are run on the operation's own operands. Where the user's call is given
    others, `tried` is run in the place of `after`: the same repair of the operation alone.
    """

    operation: str
    calls: tuple[str, ...]
    before: Callable
    after: Callable
    tried: Callable | None
    because: str


class Repair(NamedTuple):
    """What to write instead: the user's own line where `own`, else in x and y, the operands."""

    text: str
    own: bool
    because: str


REMEDIES: list[Remedy] = []


def remedy(
    operation: str, calls: str, before: Callable, because: str, tried: Callable | None = None
) -> Callable:
    """Enter a repair into the table."""

    def enter(after: Callable) -> Callable:
        REMEDIES.append(Remedy(operation, tuple(calls.split()), before, after, tried, because))
        return after

    return enter


def repair(
    operation: str,
    operands: Sequence[Any],
    expression: Expression | None = None,
    moving: Sequence[bool] | None = None,
) -> Repair | None:
    """What to write instead of this operation at these operands; None where nothing is known.

    `operation` is the name of a primitive; the power of an integer_pow is its second operand.
    `expression` is where the user calls it (`jaxbackprop.graph.lines.expression`). A repair
    is run on the operands before it is given: it makes value and slopes finite there, and changes
    neither where they were. `moving` says by which operands a slope is wanted; default: by all.
    """
    moving = [True for _ in operands] if moving is None else list(moving)
    known = [r for r in REMEDIES if r.operation == operation]
    call = None if expression is None else user_call(expression)
    if expression is not None and call is not None:
        for each in known:
            bound = bind(each, call)
            if bound is not None and helps(each, operands, bound.options, moving):
                return Repair(own_text(each.after, bound, expression), True, each.because)
    for each in known:
        if each.tried is None and helps(each, operands, {}, moving):
            return Repair(text(each.after), False, each.because)
    return None


def helps(known: Remedy, operands: Sequence[Any], options: dict, moving: Sequence[bool]) -> bool:
    """Run both: are numbers finite now that were not, and the others as they were?"""
    try:
        options = options if known.tried is None else {}
        value, slopes = _numbers(known.before, operands, options, moving)
        repaired, mended = _numbers(known.tried or known.after, operands, options, moving)
    except (TypeError, UnsupportedPrimitive):  # other operands than the call's
        return False
    sound = np.isfinite(value)
    kept = np.isnan(repaired) | ~np.isclose(repaired, value, rtol=1e-5, equal_nan=True)
    if (kept & ~np.isfinite(repaired)).any() or (kept & sound).any():
        return False
    for before, after in zip(slopes, mended, strict=True):
        same = np.isfinite(before) & (sound if sound.shape == before.shape else sound.all())
        if not np.isfinite(after).all() or (same & ~np.isclose(after, before, rtol=1e-5)).any():
            return False
    return not (sound.all() and all(np.isfinite(s).all() for s in slopes))


def _numbers(
    function: Callable, operands: Sequence[Any], options: dict, moving: Sequence[bool]
) -> tuple:
    """The value, and the gradient of its sum by each operand that moves, in float64."""
    arrays = [jnp.asarray(x) for x in operands]
    closed = jax.make_jaxpr(lambda *xs: function(*xs, **options))(*arrays)
    tape = forward(closed.jaxpr, closed.consts, arrays, list(moving))
    slopes = backward(tape, [jnp.ones_like(tape.outputs[0])])
    pairs = zip(arrays, slopes, strict=True)
    slopes = [jnp.zeros(jnp.shape(x)) if s is None else s for x, s in pairs]
    return np.asarray(tape.outputs[0], np.float64), [np.asarray(s, np.float64) for s in slopes]


# --- the table ---

ROOT = "the root has an infinite slope at 0, and no value below: here it is 0 there, and flat"


@remedy("sqrt", "sqrt", jnp.sqrt, ROOT)
def sqrt(x):
    return jnp.where(x <= 0, 0, jnp.sqrt(jnp.where(x <= 0, 1, x)))


@remedy("sqrt", "norm", jnp.sqrt, ROOT, tried=sqrt)
def norm(x, **axes):
    s = jnp.sum(x * x, **axes)
    return jnp.where(s <= 0, 0, jnp.sqrt(jnp.where(s <= 0, 1, s)))


@remedy("sqrt", "std", jnp.sqrt, ROOT, tried=sqrt)
def std(x, *, axis=None, **axes):
    v = jnp.var(x, axis=axis, **axes)
    return jnp.where(v <= 0, 0, jnp.sqrt(jnp.where(v <= 0, 1, v)))


@remedy("cbrt", "cbrt", jnp.cbrt, "the cube root has an infinite slope at 0: here it is flat there")
def cbrt(x):
    return jnp.where(x == 0, 0, jnp.cbrt(jnp.where(x == 0, 1, x)))


@remedy("rsqrt", "rsqrt", jax.lax.rsqrt, "1/√x is infinite at 0: here it is 0 there, and flat")
def rsqrt(x):
    return jnp.where(x <= 0, 0, jax.lax.rsqrt(jnp.where(x <= 0, 1, x)))


TOGETHER = "in one function the logarithm is taken before the exponential can become 0"


@remedy("log", "log(softmax)", jnp.log, TOGETHER, tried=lambda x: log(x))
def log_of_softmax(x, **axes):
    return jax.nn.log_softmax(x, **axes)


@remedy("log", "log(sigmoid)", jnp.log, TOGETHER, tried=lambda x: log(x))
def log_of_sigmoid(x):
    return jax.nn.log_sigmoid(x)


LOG = "the logarithm is -Inf at 0, and has no value below: here it ends at the smallest number"


@remedy("log", "log", jnp.log, LOG)
def log(x):
    return jnp.log(jnp.where(x <= 0, jnp.finfo(x.dtype).tiny, x))


@remedy("log", "log2", jnp.log, LOG, tried=log)
def log2(x):
    return jnp.log2(jnp.where(x <= 0, jnp.finfo(x.dtype).tiny, x))


@remedy("log", "log10", jnp.log, LOG, tried=log)
def log10(x):
    return jnp.log10(jnp.where(x <= 0, jnp.finfo(x.dtype).tiny, x))


@remedy("log1p", "log1p", jnp.log1p, "log1p is -Inf at -1: here it ends at the number next to it")
def log1p(x):
    return jnp.log1p(jnp.where(x <= -1, jnp.finfo(x.dtype).epsneg - 1, x))


QUOTIENT = "a division by 0: here the quotient is 0 there, and flat"


@remedy("div", "/ divide true_divide", jnp.divide, QUOTIENT)
def divide(x, y):
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


POWER = "a power below 1 has an infinite slope or value at 0: here it is 0 there, and flat"


@remedy("integer_pow", "** power float_power", jnp.power, POWER)
@remedy("pow", "** power float_power", jnp.power, POWER)
def power(x, y):
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, x) ** y)


@remedy("pow", "** power float_power", jnp.power, POWER + "; nor has it a value below")
def root(x, y):
    return jnp.where(x <= 0, 0, jnp.where(x <= 0, 1, x) ** y)


@remedy("integer_pow", "reciprocal", jnp.power, QUOTIENT, tried=power)
def reciprocal(x):
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))


EDGE = "its slope is infinite at ±1, and beyond it has no value: here it is flat from there on"


@remedy("acos", "arccos acos", jnp.arccos, EDGE)
def arccos(x):
    inside = jnp.abs(x) < 1
    return jnp.where(inside, jnp.arccos(jnp.where(inside, x, 0)), jnp.arccos(jnp.sign(x)))


@remedy("asin", "arcsin asin", jnp.arcsin, EDGE)
def arcsin(x):
    inside = jnp.abs(x) < 1
    return jnp.where(inside, jnp.arcsin(jnp.where(inside, x, 0)), jnp.arcsin(jnp.sign(x)))


@remedy("acosh", "arccosh acosh", jnp.arccosh, "arccosh begins at 1, with an infinite slope")
def arccosh(x):
    return jnp.where(x <= 1, 0, jnp.arccosh(jnp.where(x <= 1, 2, x)))


ENDS = "it is infinite at ±1: here it ends at the number before, and is flat"


@remedy("atanh", "arctanh atanh", jnp.arctanh, ENDS)
def arctanh(x):
    end = jnp.sign(x) * (1 - jnp.finfo(x.dtype).epsneg)
    return jnp.arctanh(jnp.where(jnp.abs(x) >= 1, end, x))


@remedy("erf_inv", "erf_inv erfinv", jax.lax.erf_inv, ENDS)
def erf_inv(x):
    end = jnp.sign(x) * (1 - jnp.finfo(x.dtype).epsneg)
    return jax.lax.erf_inv(jnp.where(jnp.abs(x) >= 1, end, x))


@remedy("atan2", "arctan2 atan2", jnp.arctan2, "the angle has no slope at (0, 0): here it is flat")
def arctan2(y, x):
    at_0 = (x == 0) & (y == 0)
    angle = jnp.arctan2(y, jnp.where(at_0, 1, x))
    return jnp.where(at_0, jax.lax.stop_gradient(jnp.arctan2(y, x)), angle)


@remedy("exp", "exp", jnp.exp, "it is too large for the dtype: here it ends, and is flat")
def exp(x):
    end = jnp.floor(jnp.log(jnp.finfo(x.dtype).max))
    return jnp.exp(jnp.where(jnp.isposinf(jnp.exp(x)), end, x))


@remedy("expm1", "expm1", jnp.expm1, "it is too large for the dtype: here it ends, and is flat")
def expm1(x):
    end = jnp.floor(jnp.log(jnp.finfo(x.dtype).max))
    return jnp.expm1(jnp.where(jnp.isposinf(jnp.expm1(x)), end, x))


# Softmax begins by subtracting the largest entry: its own argument is the first operand.
MASKED = "a row of -Inf alone has no largest entry to subtract: here such a row is 0, and flat"


@remedy("sub", "softmax", lambda x, *_, **axis: jax.nn.softmax(x, **axis), MASKED)
def softmax(x, *largest, axis=-1):
    masked = jnp.all(x == -jnp.inf, axis=axis, keepdims=True)
    return jnp.where(masked, 0, jax.nn.softmax(jnp.where(masked, 0, x), axis=axis))


@remedy("sub", "log_softmax", lambda x, *_, **axis: jax.nn.log_softmax(x, **axis), MASKED)
def log_softmax(x, *largest, axis=-1):
    masked = jnp.all(x == -jnp.inf, axis=axis, keepdims=True)
    return jnp.where(masked, 0, jax.nn.log_softmax(jnp.where(masked, 0, x), axis=axis))


@remedy("log", "logsumexp", jnp.log, "of -Inf alone it is -Inf: here the least number", tried=log)
def logsumexp(x, *, axis=None):
    masked = jnp.all(x == -jnp.inf, axis=axis, keepdims=True)
    least = jnp.finfo(x.dtype).min
    found = jax.nn.logsumexp(jnp.where(masked, 0, x), axis=axis)
    return jnp.where(jnp.all(x == -jnp.inf, axis=axis), least, found)
