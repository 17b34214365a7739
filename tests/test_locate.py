"""Where a number stops being finite, in compiled programs: against `inspect` and planted faults."""

import functools
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbackprop import inspect, locate

X = jnp.array([0.3, 0.7, 1.1])
W = jnp.array([[0.5, 0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.3, 0.6]])


def told(found):
    return found and (
        *(found.operation, str(found.line), found.scan_steps, found.direction),
        *(found.operand, found.entry, found.reaches, found.repair),
    )


def masked(x):
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))


def repaired(x):
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0))


def padded(w, x):
    def step(h, x):
        h = jnp.tanh(w @ h + x)
        return h, jnp.linalg.norm(h)

    return jnp.mean(jax.lax.scan(step, jnp.zeros(3), x)[1])


def classifier(w, x):
    return -jnp.log(jax.nn.softmax(300 * w @ x))[2]


def attention(x, mask):
    return jnp.sum(jax.nn.softmax(jnp.where(mask, x, -jnp.inf)) ** 2)


def angle(x):
    return jnp.sum(jnp.arccos(x * 2))


def exploding(w, x):
    h, _ = jax.lax.scan(lambda h, _: (jnp.exp(w @ h), None), x, None, length=6)
    return jnp.sum(h)


@jax.custom_jvp
def size(x):
    return jnp.abs(x)


@size.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return jnp.abs(x), t * x / jnp.abs(x)


def in_branch(x):
    return jax.lax.cond(x[0] < 0.5, lambda x: jnp.sum(jnp.log(x - 0.3)), jnp.sum, x)


def in_nested_scans(w, x):
    def outer(h, i):
        def inner(h, j):
            distance = jnp.sqrt((i - 1.0) ** 2 + (j - 2.0) ** 2 + 0 * h[0])
            return jnp.tanh(w @ h) + distance, None

        return jax.lax.scan(inner, h, jnp.arange(4.0))[0], None

    return jnp.sum(jax.lax.scan(jax.checkpoint(outer), x, jnp.arange(3.0))[0])


ROWS = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.5, 0.1], [0.2, 0.1, 0.0]])
MASK = jnp.array([[True, False, True], [False, False, False]])
TRAPS = {
    "0 ∞ in a branch not taken": (masked, (jnp.array([4.0, 0.0, 1.0]),)),
    "a root of -1, masked": (masked, (jnp.array([4.0, -1.0, 1.0]),)),
    "a norm of zeros in a scan": (padded, (W, ROWS)),
    "log of a softmax": (classifier, (W, X)),
    "a row of -Inf": (attention, (jnp.ones((2, 3)), MASK)),
    "arccos beyond 1": (angle, (X,)),
    "exp of exp": (exploding, (W, X)),
    "in a branch": (in_branch, (X,)),
    "given": (lambda x: jnp.sum(x**2), (jnp.array([1.0, jnp.nan]),)),
    "given, beside the parameters": (lambda w, x: jnp.sum(w @ x), (W, X.at[1].set(jnp.nan))),
    "in a rule of one's own": (lambda x: jnp.sum(jax.jit(size)(x - X)), (X,)),
    "with a repair of the line of its caller": (lambda x: jnp.sum(jnp.linalg.norm(x - X)), (X,)),
    "in nested scans, computed again": (in_nested_scans, (W, X)),
}


@pytest.mark.parametrize("name", TRAPS)
def test_the_origin_is_the_inspectors(name):
    f, args = TRAPS[name]
    expected = inspect(f)(*args).origin()
    assert expected is not None
    assert told(locate(f)(*args)) == told(expected)


def test_the_step_of_each_scan_and_the_operands_numbers_are_told():
    found = locate(in_nested_scans)(W, X)
    assert (found.operation, found.scan_steps, found.direction) == ("sqrt", (1, 2), "backward")
    assert found.line.text.startswith("distance = jnp.sqrt(")
    assert found.operand == 0
    assert float(found.operands[0]) == 0
    assert np.isinf(found.local_gradient)


SOUND = {
    "repaired": (repaired, (jnp.array([4.0, 0.0, 1.0]),)),
    "masks of -Inf": (attention, (jnp.ones((2, 3)), MASK.at[1, 0].set(True))),
    "a mask by a logarithm": (
        lambda x, m: jax.nn.logsumexp(x + jnp.log(m)),
        (X, jnp.array([1.0, 0.0, 1.0])),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_nothing_is_told_where_value_and_gradients_are_finite(name):
    f, args = SOUND[name]
    assert locate(f)(*args) is None


def test_a_harmless_mask_is_not_taken_for_the_cause():
    """The first number that is not finite is the mask's; what spoils the result comes later."""

    def f(x, mask):
        p = jax.nn.softmax(x + jnp.log(mask))
        return jnp.sum(jnp.sqrt(p))  # at p = 0 its slope is infinite

    found = locate(f)(X, jnp.array([1.0, 0.0, 1.0]))
    assert (found.operation, found.direction) == ("sqrt", "backward")


def test_the_scopes_around_every_loop_are_told():
    def f(x):
        with jax.named_scope("encoder"):
            return jnp.sum(jax.lax.scan(lambda h, _: (jnp.log(h), None), x, None, length=4)[0])

    assert locate(f)(X).scope == "encoder"


def test_an_auxiliary_output_that_is_not_finite_is_no_fault():
    f = lambda x: (jnp.sum(x), jnp.log(x - x))  # noqa: E731
    assert locate(f, has_aux=True)(X) is None


def test_nothing_but_the_function_itself_is_compiled_where_all_is_well():
    with jax.log_compiles(False):
        traces = []

        def f(x):
            traces.append(x)
            return jnp.sum(jnp.sin(x))

        assert locate(f)(X) is None
        assert len(traces) == 1


def test_under_jit_it_is_refused():
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda x: locate(jnp.sum)(x) is None)(X)


def test_jaxs_own_alarms_do_not_go_off():
    with jax.debug_nans(True):
        assert locate(masked)(jnp.array([4.0, 0.0, 1.0])).operation == "sqrt"


# --- planted faults ---

SMOOTH = {
    "tanh": lambda h, w: jnp.tanh(w @ h),
    "sin": lambda h, w: jnp.sin(h) + 0.1 * h,
    "relu": lambda h, w: jax.nn.relu(h) + 0.2 * h,
    "norm": lambda h, w: h / jnp.sqrt(1 + jnp.sum(h**2)),
    "product": lambda h, w: (w @ h) * jnp.cos(h),
}
# At z = 0: forward, or on the way back alone; a value of no harm to what is around it.
FORWARD = {
    "log": lambda z: jnp.log(z),
    "div": lambda z: 1 / z,
    "rsqrt": lambda z: jax.lax.rsqrt(z),
    "acos": lambda z: jnp.arccos(1.5 + z),
}
BACKWARD = {
    "sqrt": lambda z: jnp.sqrt(z),
    "pow": lambda z: z**0.3,
    "acos": lambda z: jnp.arccos(1 - z),
    "asin": lambda z: jnp.arcsin(1 - z),
}


def masks(rng):
    """Attention-like steps whose -Inf do no harm, by a constant, a comparison or a logarithm."""
    keep = np.array(rng.choice([(1, 0, 1), (0, 1, 1), (1, 1, 0)]), np.float32)
    ways = [
        lambda h: jnp.where(keep > 0, h, -jnp.inf),
        lambda h: h + jnp.log(keep * jnp.ones_like(h)),
        lambda h: jnp.where(h >= jnp.sort(h)[1], h, -jnp.inf),
    ]
    way = rng.choice(ways)
    return lambda h, w: (
        h + jax.nn.softmax(way(h))
        if way is not ways[1]
        else h + jnp.exp(jax.nn.log_softmax(way(h)))
    )


def chain(steps):
    return lambda h, w: functools.reduce(lambda h, step: step(h, w), steps, h)


def wrapped(rng, body, lengths):
    """The body in a structure, or as it is."""
    kind = rng.choice(["plain", "scan", "reverse", "jit", "remat", "cond", "scan of remat"])
    if "scan" in kind or kind == "reverse":
        inner = jax.checkpoint(body) if "remat" in kind else body
        length = rng.choice(lengths)

        def run(h, w):
            step = lambda h, _: (inner(h, w), jnp.sum(h))  # noqa: E731
            h, ys = jax.lax.scan(step, h, None, length=length, reverse=kind == "reverse")
            return h + 0.01 * ys[0]

        return run
    if kind == "jit":
        return jax.jit(body)
    if kind == "remat":
        return jax.checkpoint(body)
    if kind == "cond":
        return lambda h, w: jax.lax.cond(h[0] < 1e6, body, lambda h, w: h, h, w)
    return body


def random_program(seed, planted):
    """(f, the planted operation or None, its direction): smooth steps and masks, in structures."""
    rng = random.Random(seed)

    def steps(n):
        return [rng.choice([*SMOOTH.values(), masks(rng)]) for _ in range(n)]

    name = direction = None
    fault = []
    if planted:
        direction = rng.choice(["forward", "backward"])
        table = FORWARD if direction == "forward" else BACKWARD
        name = rng.choice(sorted(table))
        entry = rng.randrange(3)

        def fault_step(h, w):
            z = jnp.where(jnp.arange(3) == entry, 0 * h, 0.1 + 0.1 * jnp.tanh(h) ** 2)
            return h + 0.1 * table[name](z)

        hidden = lambda h, w: h + jnp.where(jnp.isfinite(fault_step(h, w)), fault_step(h, w), 0.0)  # noqa: E731
        fault = [hidden if rng.random() < 0.3 and direction == "backward" else fault_step]
    inner = wrapped(rng, chain([*steps(2), *fault, *steps(1)]), (2, 3))
    outer = wrapped(rng, chain([*steps(1), inner, *steps(1)]), (2, 3))
    f = lambda w, x: jnp.mean(chain([*steps_before, outer, *steps_after])(x, w) ** 2)  # noqa: E731
    steps_before, steps_after = steps(1), steps(2)
    return f, name, direction


# LOCATE_PROGRAMS=200 is the whole campaign, half an hour on two cores.
COUNT = int(os.environ.get("LOCATE_PROGRAMS", "2"))


def is_sound(f):
    """By jax: on the way back a fault does no harm before the first step that depends on w."""
    return all(np.isfinite(part).all() for part in jax.jit(jax.value_and_grad(f))(W, X))


def test_a_planted_fault_is_named():
    wrong = []
    for seed in range(COUNT):
        f, name, direction = random_program(seed, planted=True)
        found = locate(f)(W, X)
        right = found and (found.operation, found.direction) == (name, direction)
        if not right and not (found is None and is_sound(f)):
            wrong.append((seed, name, direction, found and told(found)))
    assert len(wrong) <= COUNT // 100, wrong


def test_no_alarm_on_sound_programs_with_masks():
    for seed in range(4 * COUNT if COUNT < 200 else COUNT):
        f, _, _ = random_program(seed, planted=False)
        assert locate(f)(W, X) is None, seed
