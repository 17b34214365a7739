"""What a second eager call costs: grad, value_and_grad and vjp beside jax's own, and inspect, which
keeps and describes every value, beside jax.grad.

    python scripts/eager_cost.py                    the models of graph_benchmark.py, and expm
    python scripts/eager_cost.py --models MLP expm --ways grad vjp --rounds 5
    python scripts/eager_cost.py --ways check_gradients --rounds 3
    python scripts/eager_cost.py --ways inspect --jitted        of functions that are jitted

The figure is the median of the rounds' own ratios, ours over jax's; the first call of each, which
compiles, is not counted. It takes some minutes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from graph_benchmark import MODELS, lstm
from parts.arguments import check
from parts.progress import doing, told

import jaxbackprop
from jaxbackprop.check import check_gradients


def expm(rngs: nnx.Rngs) -> tuple[Any, Callable]:
    x = jax.random.normal(rngs.params(), (8, 8)) / 8
    return x, lambda x: jax.scipy.linalg.expm(x).sum()


Way = Literal["grad", "value_and_grad", "vjp", "inspect", "check_gradients"]
LONG = {"LSTM, 256 steps": functools.partial(lstm, steps=256)}
FUNCTIONS = MODELS | LONG | {"expm": expm}


@dataclasses.dataclass(frozen=True)
class Options:
    """Which functions, and how often."""

    models: tuple[Literal[tuple(FUNCTIONS)], ...] = tuple(FUNCTIONS)
    """Which functions."""
    rounds: int = 9
    """Calls of each in turn."""
    ways: tuple[Way, ...] = get_args(Way)[:-1]
    """Which of ours: check_gradients, hundreds of evaluations, where it is asked for."""
    jitted: bool = False
    """The functions jitted: what jax traced and compiled at the first call is at hand."""

    def __post_init__(self) -> None:
        check(self, rounds=1)


def pulled(vjp: Callable) -> Callable:
    def gradient(f):
        def call(x):
            out, pullback = vjp(f, x)
            return pullback(jnp.ones_like(out))

        return call

    return gradient


def inspected(f: Callable) -> Callable:
    return lambda x: jaxbackprop.inspect(f)(x).gradients


def checked(f: Callable) -> Callable:
    return lambda x: [leaf.expected for leaf in check_gradients(f, x).leaves]


WAYS: dict[Way, tuple[Callable, Callable]] = {
    "grad": (jaxbackprop.grad, jax.grad),
    "value_and_grad": (jaxbackprop.value_and_grad, jax.value_and_grad),
    "vjp": (pulled(jaxbackprop.vjp), pulled(jax.vjp)),
    "inspect": (inspected, jax.grad),
    "check_gradients": (checked, jax.grad),
}


def seconds(call: Callable, x: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call(x))
    return time.perf_counter() - begin


@told
def main(options: Options) -> None:
    for name in options.models:
        x, f = FUNCTIONS[name](nnx.Rngs(0))
        f = jax.jit(f) if options.jitted else f
        for way in options.ways:
            ours, theirs = WAYS[way]
            doing(f"{name}, {way}")
            calls = [ours(f), theirs(f)]
            first = [seconds(call, x) for call in calls]
            times = np.array([[seconds(call, x) for call in calls] for _ in range(options.rounds)])
            ours_ms, jax_ms = 1e3 * np.median(times, axis=0)
            ratio = np.median(times[:, 0] / times[:, 1])
            print(
                f"{name:18}{way:16}{ratio:6.2f}   ours {ours_ms:8.1f} ms  jax {jax_ms:8.1f} ms"
                f"   first {first[0]:5.2f} s, {first[1]:5.2f} s"
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
