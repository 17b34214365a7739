"""Campaign on the origin of what is not finite: generated programs with one planted operation.

In every trial one program has an operation that is not finite, forward or back, in scans or behind
masks, and spoils a result by jax's own gradient: `locate` has to name it, and to say what `inspect`
says. Another is sound, with masks of -Inf in it: `locate` has to say nothing.
"""

import functools
import pathlib
import random
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import worker_memory
from campaign_report import Report, control
from campaign_report import planted as replaced

from jaxbackprop import inspect, locate
from jaxbackprop.graph.watching import locating

X = jnp.array([0.3, 0.7, 1.1])
W = jnp.array([[0.5, 0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.3, 0.6]])

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


def random_program(rng, planted):
    """(f, the planted operation or None, its direction): smooth steps and masks, in structures."""

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


class Planted(NamedTuple):
    """A program in which one operation spoils value or gradient."""

    f: Callable
    operation: str
    direction: str


def planted(seed: int) -> Planted:
    """Drawn again where the fault does no harm: on the way back it does none before the first step
    that depends on w."""
    rng = random.Random(seed)
    while True:
        f, operation, direction = random_program(rng, planted=True)
        if not all(np.isfinite(part).all() for part in jax.jit(jax.value_and_grad(f))(W, X)):
            return Planted(f, operation, direction)


def sound(seed: int) -> Callable:
    return random_program(random.Random(seed), planted=False)[0]


def told(found):
    """What is said of an origin; of its numbers the rest is a matter of rounding."""
    return found and (
        *(found.operation, str(found.line), found.scan_steps, found.direction),
        *(found.operand, found.entry, found.reaches, found.repair),
    )


def trial(seed: int) -> list[str]:
    """What was said wrongly."""
    wrong = []
    f, operation, direction = planted(seed)
    found = locate(f)(W, X)
    if found is None or (found.operation, found.direction) != (operation, direction):
        wrong.append(f"seed {seed}: {operation} {direction}, but told: {told(found)}")
    if told(found) != (expected := told(inspect(f)(W, X).origin())):
        wrong.append(f"seed {seed}: located {told(found)}, inspected {expected}")
    if (alarm := locate(sound(seed))(W, X)) is not None:
        wrong.append(f"seed {seed}: all is finite, but told: {told(alarm)}")
    worker_memory.let_go_if_full()
    return wrong


def locate_(root: pathlib.Path, count: int, seed: int) -> Report:
    """At most one program in a hundred is told wrongly."""
    wrong = [said for k in range(seed, seed + count) if (said := trial(k))]
    failures = [line for said in wrong for line in said] if len(wrong) > count // 100 else []
    figures = f"{count - len(wrong)} of {count} named as planted and as inspected, none falsely"
    return Report(failures, figures, control(lambda: _unhealed(seed)))


def _unhealed(seed: int) -> list[str]:
    """Nothing is healed, so that no cause is told from what does no harm."""
    own = locating.ears
    idle = lambda chosen, heal: own(chosen, lambda n, site: 0 * heal(n, site))  # noqa: E731
    with replaced(locating, ears=idle):
        return trial(seed)
