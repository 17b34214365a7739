"""What may be asked for in place of storing everything, as data: any backward pass can read it.

A description is frozen, hashable and static under `jax.jit`. It says what is wanted and not how: a
dense network and a function's graph each interpret it in their own way.
"""

import dataclasses
import operator
import re

import jax

UNITS = {"": 1, **{unit: 1000**n for n, unit in enumerate("KMGT", 1)}}
UNITS |= {f"{unit}I": 1024**n for n, unit in enumerate("KMGT", 1)}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Every:
    """Every k-th activation is kept, k − 1 more are computed again."""

    k: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Within:
    """The fewest evaluations in so many bytes of temporary memory."""

    bytes: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class JaxSegments:
    """jax.grad, with jax.checkpoint around every k layers: the twin to compare with."""

    k: int


Description = Every | Within | JaxSegments


def every(k: int) -> Every:
    """What `checkpoint=` takes: every k-th activation kept, k − 1 more computed again.

    The segments are counted within each stack and each run of plain layers, whose inputs are kept
    as well. δ is carried from segment to segment. With k = 1 everything is kept.

    Raises ValueError for k below 1.
    """
    return Every(_segment(k))


def within(bytes: int | str) -> Within:
    """What `checkpoint=` takes: the fewest evaluations in so many bytes, or in "64MiB", "1.5 GB".

    The bytes are temporary memory, beside the arguments and the gradients. `plan` returns the plan
    as a value. Where no plan is small enough, the gradient raises ValueError and names the least.

    Raises ValueError for what is no positive number of bytes.
    """
    return Within(number_of_bytes(bytes))


def jax_segments(k: int) -> JaxSegments:
    """What `backprop(checkpoint=…)` takes: jax.grad, with jax.checkpoint around every k layers.

    Of a stack, the layers that do not fill a segment come first. In a scan this stores what it
    says. Unrolled it may not: on a CPU, XLA under jax 0.10 finds that a recomputed plain layer
    equals the first computation, and keeps that one (0.12 does not); look at temp_size_in_bytes.

    Raises ValueError for k below 1, and where a device is to exchange something with others.
    """
    return JaxSegments(_segment(k))


def described(checkpoint: object) -> Description:
    """The description, also of the command line's "every:2" and "64MiB".

    Raises ValueError for everything else, and says what was meant where that can be seen.
    """
    if isinstance(checkpoint, Description):
        return checkpoint
    takes = 'checkpoint takes every(k), within(bytes), "every:2" or "64MiB"'
    if isinstance(checkpoint, str):
        segments = re.fullmatch(r"every: ?(\d+)", checkpoint)
        if segments:
            return every(int(segments[1]))
        try:
            return within(checkpoint)
        except ValueError as error:
            raise ValueError(f"{takes}: {error}") from None
    if callable(checkpoint):
        name = getattr(checkpoint, "__name__", type(checkpoint).__name__)
        asked = {
            "every": "every(3)",
            "within": 'within("64MiB")',
            "jax_segments": "jax_segments(3)",
        }
        call = f": call it, as in {asked[name]}" if name in asked else ""
        raise ValueError(f"checkpoint is the function {name}{call or f'; {takes}'}")
    raise ValueError(f"checkpoint is {checkpoint!r}; {takes}")


def number_of_bytes(value: object) -> int:
    """Of 67108864, "64MiB", "1.5 GB" or "100000": K, M, G and T are powers of 1000, Ki of 1024.

    Raises ValueError for what is none, and for less than one byte.
    """
    refusal = f'{value!r} is no number of bytes, such as 67108864 or "64MiB"'
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+\.?\d*) *([KMGT]?I?)B?", value.strip().upper())
        if match is None or match[2] not in UNITS:
            raise ValueError(refusal)
        number = int(float(match[1]) * UNITS[match[2]])
    else:
        number = whole_number(value, refusal)
    if number < 1:
        raise ValueError(f"{value!r} is less than one byte")
    return number


def whole_number(value: object, refusal: str) -> int:
    """value as an int; ValueError with the refusal where it is a bool, a fraction, traced, …"""
    if not isinstance(value, bool):
        try:
            return int(value) if _is_whole(value) else operator.index(value)  # pyright: ignore
        except (TypeError, ValueError):
            pass
    raise ValueError(refusal) from None


def _is_whole(value: object) -> bool:
    """2.0**20 is meant as a number of bytes, and is one."""
    return isinstance(value, float) and value.is_integer()


def _segment(k: object) -> int:
    refusal = f"k is {k!r}, expected a whole number ≥ 1: every k-th activation is kept"
    number = whole_number(k, refusal)
    if number < 1:
        raise ValueError(refusal)
    return number
