"""Part 3: the four equations, each with a sentence, its shapes and its code."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from explorer_parts import network
from jaxbackprop import equations

ABOUT: dict[str, tuple[Callable, str]] = {
    "BP1 · δᴸ = ∇ₐC ⊙ σ′(zᴸ)": (
        equations.output_error,
        "How much the cost minds the output, times how much the output still moves.",
    ),
    "BP2 · δˡ = ((Wˡ⁺¹)ᵀ δˡ⁺¹) ⊙ σ′(zˡ)": (
        equations.hidden_error,
        "Blame runs back along the weights that carried the signal forward; a flat unit "
        "lets none of it through.",
    ),
    "BP3 · ∂C/∂Wˡ = (1/m) δˡ (aˡ⁻¹)ᵀ": (
        equations.weight_gradient,
        "A weight is to blame as far as its unit erred while its input spoke.",
    ),
    "BP4 · ∂C/∂bˡ = (1/m) Σᵢ δˡᵢ": (
        equations.bias_gradient,
        "A bias is a weight whose input is always 1: the error itself, averaged.",
    ),
}


def pages() -> dict[str, str]:
    """What each title opens to, as Markdown."""
    return {
        title: f"{words}\n\nShapes in a (3, 4, 2) network with five examples, layer 2's for BP1 "
        f"and layer 1's for the others: {shapes()[function.__name__]}\n\n"
        f"```python\n{inspect.getsource(function)}```"
        for title, (function, words) in ABOUT.items()
    }


@functools.cache
def shapes() -> dict[str, str]:
    """What each equation takes and gives in the matrix network."""
    walk = network.matrices("tanh", 0)[0]
    taken = {
        equations.output_error: ("∂C/∂a²", "σ′(z²)"),
        equations.hidden_error: ("W²", "δ²", "σ′(z¹)"),
        equations.weight_gradient: ("δ¹", "x"),
        equations.bias_gradient: ("δ¹",),
    }
    written = {}
    for equation, symbols in taken.items():
        arrays = [jnp.asarray(walk.find(symbol)[1]) for symbol in symbols]
        named = zip(inspect.signature(equation).parameters, arrays, strict=True)
        given = ", ".join(f"`{name}` {_size(array)}" for name, array in named)
        written[equation.__name__] = f"{given} → {_size(equation(*arrays))}"
    return written


def _size(array: jax.Array) -> str:
    return " × ".join(map(str, array.shape))
