"""Plans for any function, beside those for a dense network."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

from jaxbackprop.checkpoint import planning
from jaxbackprop.checkpoint.descriptions import number_of_bytes
from jaxbackprop.graph.budget import asking
from jaxbackprop.network import Network
from jaxbackprop.refusals import check_whole

MIB = 2**20


def plan(f: Any, *args: Any, has_aux: bool = False, **options: Any) -> Any:
    """The exact gradient in so many bytes of temporary memory, before anything runs.

    `plan(f, *args, bytes="64MiB")`: of a function, by its first argument; arguments may be
    `jax.ShapeDtypeStruct`s. It has `.bytes` (predicted), `.compiled_bytes` and `.factor` (the time
    over that of keeping everything, estimated), and prints what is kept and what is computed again
    by line. `plan(network, batch, dtype, bytes=…)`: of a dense network, the fewest layer
    evaluations; in a stack the schedule is binomial (Griewank and Walther, 2000), in plain layers
    the dynamic programme's (Beaumont et al., 2019).

    Raises ValueError where no plan is small enough, and names the least number of bytes that is.
    """
    if isinstance(f, Network):
        return planning.plan(f, *args, **options)
    _check("plan", f, args)
    return asking.plan_of(f, args, number_of_bytes(options.pop("bytes", None)), has_aux, **options)


def _check(name: str, f: object, args: tuple) -> None:
    """Raise TypeError unless f is a function that comes with its arguments."""
    if isinstance(f, Network):
        raise TypeError(f"checkpoint.{name} takes a function: of a Network there is plan")
    if not callable(f):
        also = " or a Network" if name == "plan" else ""
        raise TypeError(f"{name} takes a function{also}, got {type(f).__name__}")
    if not args:
        raise TypeError(f"checkpoint.{name} takes f's arguments after f; their shapes are enough")


def least(f: Callable, *args: Any, has_aux: bool = False) -> asking.Least:
    """The fewest bytes that a plan of f's gradient compiles to, and the operation behind them."""
    _check("least", f, args)
    return asking.least_of(f, args, has_aux)


class Kept(NamedTuple):
    """What an ordinary backward pass keeps by line, beside the bytes of jax.grad's program."""

    walk: asking.Kept
    jax_bytes: int

    def __str__(self) -> str:
        first, *rest = str(self.walk).splitlines()
        return "\n".join([f"{first}, jax.grad's {self.jax_bytes / MIB:.2f}", *rest])


def kept(f: Callable, *args: Any, has_aux: bool = False) -> Kept:
    """What an ordinary backward pass of f keeps, by line and bytes, and what jax.grad's needs.

    f's own `jax.checkpoint`s count: where the rows are the same with and without one, it does
    nothing.
    """
    _check("kept", f, args)
    return Kept(asking.kept_of(f, args, has_aux), _temporary(f, args, has_aux))


class Frontier(NamedTuple):
    """Bytes against estimated time, from the least to all; jax.grad and jax.checkpoint beside."""

    points: list[asking.Point]
    jax_bytes: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{'MiB':>9} {'time ×':>7}"]
        lines += [f"{point.bytes / MIB:9.2f} {point.factor:7.2f}" for point in self.points]
        lines += [f"{bytes / MIB:9.2f}          {name}" for name, bytes in self.jax_bytes.items()]
        return "\n".join(lines)


def frontier(f: Callable, *args: Any, points: int = 12, has_aux: bool = False) -> Frontier:
    """Plans of f's gradient from the least bytes to all, and the compiled bytes of jax.grad and of
    jax.checkpoint around f with its policies."""
    _check("frontier", f, args)
    check_whole("points", points)
    policies = jax.checkpoint_policies
    dots_kept = functools.partial(jax.checkpoint, policy=policies.dots_saveable)
    ways = {
        "jax.grad": lambda f: f,
        "jax.checkpoint(f)": jax.checkpoint,
        "jax.checkpoint(f), dots kept": dots_kept,
    }
    compiled = {name: _temporary(f, args, has_aux, around) for name, around in ways.items()}
    return Frontier(asking.frontier_of(f, args, points, has_aux), compiled)


def _temporary(
    f: Callable, args: tuple, has_aux: bool, around: Callable[[Callable], Callable] = lambda f: f
) -> int:
    """The bytes of jax.grad's program; what is no array among the arguments is not traced."""
    arrays, fill = asking.arrays_in(args[1:])
    of_arrays = around(lambda first, arrays: f(first, *fill(arrays)))
    program = jax.jit(jax.value_and_grad(of_arrays, 0, has_aux)).lower(args[0], arrays).compile()
    return cast(Any, program.memory_analysis()).temp_size_in_bytes
