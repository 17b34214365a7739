"""The network: what is fixed (`Network`), what is learned (`Layer`), what a forward pass leaves.

Parameters are a tuple of `Layer`s, counted forward. A long run of hidden layers of one shape may be
one entry, a *stack* (`jaxbackprop.stacks`); every function of the library takes either form.
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
from jaxtyping import Array, Float

from jaxbackprop.activations import ACTIVATIONS, Activation
from jaxbackprop.losses import LOSSES, Loss

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.

T = TypeVar("T")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Network:
    """A dense network: its layer widths, input first; its activations; its loss.

    `hidden` and `output` name an entry of `activations.ACTIVATIONS`, or are an `Activation` of your
    own. It has no arrays: it is hashable and passes through `jax.jit` as it is.

    Raises ValueError for a width below 1 or not whole, for an unknown name (and suggests the
    nearest one), and for a pair of output and loss whose output error is not defined: softmax and
    cross_entropy need each other, and binary_cross_entropy needs sigmoid.
    """

    sizes: Sequence[int]
    hidden: str | Activation = "sigmoid"
    output: str | Activation = "sigmoid"
    loss: str = "squared_error"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "sizes", tuple(self.sizes))
        except TypeError:
            raise ValueError(
                f"sizes is {self.sizes!r}, expected all widths in one tuple: Network((4, 8, 3))"
            ) from None
        if len(self.sizes) < 2:
            raise ValueError(f"sizes needs an input and an output width, got {self.sizes}")
        for l, width in enumerate(self.sizes):
            if isinstance(width, bool) or not hasattr(width, "__index__") or width < 1:
                raise ValueError(f"sizes[{l}] is {width!r}: a width is a whole number ≥ 1")
        object.__setattr__(self, "sizes", tuple(int(width) for width in self.sizes))
        if self.sigma(0).name == "softmax" and self.depth > 1:
            raise ValueError("hidden='softmax': softmax can only be the output")
        look_up("loss", self.loss, LOSSES)
        needed, output = LOSSES[self.loss].output, self.sigma(self.depth).name
        if needed not in (None, output):
            raise ValueError(f"loss='{self.loss}' needs output='{needed}', got output='{output}'")
        if output == "softmax" and needed != "softmax":
            raise ValueError(f"output='softmax' needs loss='cross_entropy', got '{self.loss}'")

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self.sizes) - 1

    def sigma(self, l: int) -> Activation:
        """The activation of layer l = 1 … L."""
        which = "output" if l == self.depth else "hidden"
        named = getattr(self, which)
        return named if isinstance(named, Activation) else look_up(which, named, ACTIVATIONS)

    @property
    def cost(self) -> Loss:
        """The loss as functions: C and ∇ₐC."""
        return LOSSES[self.loss]


def widths(sizes: Sequence[int]) -> str:
    """The sizes in words, runs of equal ones counted: "784, 200 × 256, 10"."""
    runs = [(width, len(list(run))) for width, run in itertools.groupby(sizes)]
    return ", ".join(f"{n} × {width}" if n > 1 else f"{width}" for width, n in runs)


def look_up(field: str, name: object, table: dict[str, T]) -> T:
    """table[name], or a ValueError that suggests the nearest name."""
    if isinstance(name, str) and name in table:
        return table[name]
    if callable(name):
        called = getattr(name, "__name__", type(name).__name__)
        raise ValueError(f"{field} is the function {called}, expected one of {', '.join(table)}")
    written = re.sub(r"[\W_]", "", str(name)).lower()
    by_letters = {entry.replace("_", ""): entry for entry in table}
    near = [by_letters[key] for key in difflib.get_close_matches(written, by_letters, n=1)]
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(table)}"
    raise ValueError(f"{field}={name!r} is unknown: {hint}")


class Layer(NamedTuple):
    """The weights W and biases b of one layer, or of a stack of equal layers."""

    W: Float[Array, "*depth n p"]
    b: Float[Array, "*depth n 1"]


Params = tuple[Layer, ...]


class Trace(NamedTuple):
    """What the forward pass leaves for the backward pass: the residuals.

    `activations[0]` is x; `zs[k]` and `activations[k + 1]` belong to `params[k]`, and have a
    leading axis where that is a stack.
    """

    zs: tuple[Float[Array, "*depth n m"], ...]
    activations: tuple[Float[Array, "*depth n m"], ...]


def layers_in(layer: Layer) -> int:
    """How many layers an entry of `params` stands for."""
    return layer.W.shape[0] if layer.W.ndim == 3 else 1
