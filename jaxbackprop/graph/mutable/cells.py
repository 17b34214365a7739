"""A mutable array as a cell, that holds its value at the moment."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.mutable import views
from jaxbackprop.graph.rules.table import UnsupportedPrimitive


class Cell:
    """A mutable array: writing puts another value in the place of the one that it holds."""

    def __init__(self, aval: Any, value: Any) -> None:
        self.aval = aval
        self.written = False
        self.held = self._own(value)

    def read(self, transforms: tuple) -> Any:
        return views.read(self.value, transforms)

    def write(self, transforms: tuple, part: Any) -> None:
        self.held, self.written = views.write(self.value, transforms, self._own(part)), True

    def add(self, transforms: tuple, part: Any) -> None:
        self.held, self.written = views.add(self.value, transforms, self._own(part)), True

    def end(self) -> Any:
        """Its last value: it has none from then on."""
        value, self.held = self.value, None
        return value

    @property
    def value(self) -> Any:
        if self.held is None:
            raise ValueError("a mutable array is used after it was frozen or freed")
        return self.held

    def _own(self, x: Any) -> Any:
        """What is written has the type of the array, and, where jax was told so, no gradient."""
        kind = self.aval.inner_aval
        if jax.typeof(x).dtype != kind.dtype or jax.typeof(x).weak_type:
            x = lax.convert_element_type(x, kind.dtype)
        return lax.stop_gradient(x) if self.aval.kind == "no_grad_no_remat" else x


def is_mutable(aval: Any) -> bool:
    return hasattr(aval, "inner_aval")


def new(aval: Any, *start: Any) -> Cell:
    """`jax.new_ref` of a value, or `jax.empty_ref`, which has none."""
    kind = aval.inner_aval
    return Cell(aval, *(start or [jnp.zeros(kind.shape, kind.dtype)]))


def access(name: str, cell: Cell, part: list, transforms: tuple) -> list:
    """The results of an operation on a mutable array."""
    if name == "get":
        return [cell.read(transforms)]
    if name == "swap":
        before = cell.read(transforms)
        cell.write(transforms, *part)
        return [before]
    if name == "addupdate":
        cell.add(transforms, *part)
        return []
    if name in ("freeze", "free_ref"):
        return [cell.end()][: name == "freeze"]
    raise UnsupportedPrimitive(f"no rule for '{name}' of a mutable array")
