"""Which numbers of a parameter an operation reads: operations that only move them.

A `View` follows a parameter through transposes, reshapes, slices and casts, and through the loops
that it is a constant or a slice of. Every number of a view is one number of the parameter, and no
number is there twice, so a gradient in the shape of the view has the norm that it has in the shape
of the parameter. Which number that is, NumPy's strides say: two views whose axes have the same
strides, in whatever order, read the same numbers.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Look = Callable[[Any], Any]


class View(NamedTuple):
    """What is read of a parameter, inside loops that each read one slice of it or all of it.

    `look(parameter)` is the view with the slices of all steps: for each loop whose step reads a
    slice an axis in front, outermost first. `strided` is the look at a NumPy array of the
    parameter's shape, whose memory is never touched. Of each loop, outermost first, `steps` is the
    length, and `owned` says whether a step reads a slice of its own.
    """

    leaf: int
    look: Look
    strided: np.ndarray
    owned: tuple[bool, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape at one step."""
        return self.strided.shape[sum(self.owned) :]

    def names(self) -> list:
        """One name an axis of the strided array: its stride, where the axis is longer than 1."""
        return [
            stride if n > 1 else ("single", d)
            for d, (n, stride) in enumerate(
                zip(self.strided.shape, self.strided.strides, strict=True)
            )
        ]


def view(leaf: int, shape: tuple[int, ...]) -> View:
    """The parameter itself."""
    return View(leaf, _itself, np.empty(shape, np.int8))


def _itself(x: Any) -> Any:
    return x


def within(outer: View, steps: int, owned: bool) -> View:
    """The view from within a loop, whose every step reads all of it or, `owned`, its own slice."""
    return outer._replace(owned=(*outer.owned, owned), steps=(*outer.steps, steps))


def is_whole(seen: View) -> bool:
    """Is it the parameter itself, as it is, with at most a loop's slices of it?"""
    return seen.look is _itself


def same_place(a: View, b: View) -> bool:
    """Do both read the same numbers, with the axes in any order?"""
    return _start(a) == _start(b) and _axes(a) == _axes(b)


def apart(a: View, b: View) -> bool:
    """Do they read no number in common? False where that is too hard to tell."""
    try:
        return not np.shares_memory(a.strided, b.strided, 10_000)  # pyright: ignore
    except np.exceptions.TooHardError:
        return False


# One entry a primitive: (array, number of leading axes to leave alone, the primitive's parameters)
# to the list of its outputs, for arrays of NumPy and of JAX alike; None where the operation is no
# view after all.
VIEWS: dict[str, Callable[..., list | None]] = {}


def through(equation: Any, seen: View) -> list[View] | None:
    """The views of an equation's outputs, if all that it does is move the numbers of its input."""
    name = equation.primitive.name
    if name not in VIEWS:
        return None

    def move(array):
        return VIEWS[name](array, sum(seen.owned), **equation.params) or []

    moved = move(seen.strided)
    if not moved or not all(np.may_share_memory(array, seen.strided) for array in moved):
        return None  # NumPy had to copy: the numbers no longer lie at regular distances
    return [
        seen._replace(look=lambda x, i=i: move(seen.look(x))[i], strided=array)
        for i, array in enumerate(moved)
    ]


def _enter(*names: str) -> Callable:
    def enter(function: Callable) -> Callable:
        for name in names:
            VIEWS[name] = function
        return function

    return enter


@_enter("convert_element_type", "copy", "copy_p", "sharding_constraint")
def _same(a, lead, **params):
    """The numbers stay; a cast rounds them, on the way back too."""
    return [a]


@_enter("transpose")
def _transpose(a, lead, *, permutation):
    return [a.transpose((*range(lead), *(lead + d for d in permutation)))]


@_enter("reshape")
def _reshape(a, lead, *, new_sizes, dimensions=None, **params):
    return [a.reshape((*a.shape[:lead], *new_sizes))] if dimensions is None else None


@_enter("squeeze")
def _squeeze(a, lead, *, dimensions):
    kept = [n for d, n in enumerate(a.shape[lead:]) if d not in dimensions]
    return [a.reshape((*a.shape[:lead], *kept))]


@_enter("broadcast_in_dim")
def _broadcast(a, lead, *, shape, **params):
    """A view only where nothing but axes of length 1 are new."""
    same = math.prod(shape) == math.prod(a.shape[lead:])
    return [a.reshape((*a.shape[:lead], *shape))] if same else None


@_enter("slice")
def _slice(a, lead, *, start_indices, limit_indices, strides):
    steps = strides or (1,) * len(start_indices)
    spans = map(slice, start_indices, limit_indices, steps)
    return [a[(*_all(lead), *spans)]]


@_enter("split")
def _split(a, lead, *, sizes, axis):
    ends = np.cumsum([int(n) for n in sizes]).tolist()
    before = _all(lead + axis)
    return [a[(*before, slice(end - int(n), end))] for end, n in zip(ends, sizes, strict=True)]


@_enter("rev")
def _rev(a, lead, *, dimensions):
    backwards = slice(None, None, -1)
    spans = [backwards if d in dimensions else slice(None) for d in range(a.ndim - lead)]
    return [a[(*_all(lead), *spans)]]


def _all(count: int) -> tuple[slice, ...]:
    return (slice(None),) * count


def _axes(seen: View) -> list[tuple[int, int]]:
    pairs = zip(seen.strided.strides, seen.strided.shape, strict=True)
    return sorted((stride, n) for stride, n in pairs if n > 1)


def _start(seen: View) -> int:
    return seen.strided.__array_interface__["data"][0]
