"""Backpropagation written out by hand in JAX: each number of the backward pass is a plain value.

Two wings, which check each other: the four equations for dense networks (`Network`, `init`,
`forward`, `loss`, `backward`, `backprop`), and the reverse walk over the computation graph of any
JAX function (`grad`, `value_and_grad`, `vjp`, `inspect`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxbackprop import checkpoint, equations
from jaxbackprop.backprop import Backward, backprop, backward
from jaxbackprop.forward import forward, loss
from jaxbackprop.initialisation import init
from jaxbackprop.network import Layer, Network, Trace
from jaxbackprop.stacks import stack, unstack

if TYPE_CHECKING:
    from jaxbackprop import check, flow, per_example
    from jaxbackprop.devices import processes, rows, sharding
    from jaxbackprop.graph import (
        Inspection,
        UnsupportedPrimitive,
        grad,
        inspect,
        locate,
        value_and_grad,
        vjp,
        watch,
    )
    from jaxbackprop.training import data, memory, plots, saving, shuffle, train

__version__ = "0.2.0"

# What is imported when it is first asked for: the graph wing, and modules of the other rooms. Of
# those that need more than JAX the extra is named, to be said where it is missing.
_GRAPH = [
    "Inspection",
    "UnsupportedPrimitive",
    "grad",
    "inspect",
    "locate",
    "value_and_grad",
    "vjp",
    "watch",
]
_MODULES = {
    **dict.fromkeys(("check", "flow", "per_example"), ("", "")),
    **dict.fromkeys(("data", "memory", "saving", "shuffle", "train"), ("training.", "train")),
    "plots": ("training.", "plot"),
    **dict.fromkeys(("processes", "rows", "sharding"), ("devices.", "train")),
}


def __getattr__(name: str) -> Any:
    if name in _GRAPH:
        return getattr(importlib.import_module("jaxbackprop.graph"), name)
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxbackprop' has no attribute {name!r}")
    room, extra = _MODULES[name]
    try:
        return importlib.import_module(f"jaxbackprop.{room}{name}")
    except ModuleNotFoundError as error:
        if not extra or str(error.name).startswith("jaxbackprop"):
            raise
        raise ModuleNotFoundError(
            f"jaxbackprop.{name} needs {error.name}: pip install 'jaxbackprop[{extra}]'",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Backward",
    "Inspection",
    "Layer",
    "Network",
    "Trace",
    "UnsupportedPrimitive",
    "__version__",
    "backprop",
    "backward",
    "check",
    "checkpoint",
    "data",
    "equations",
    "flow",
    "forward",
    "grad",
    "init",
    "inspect",
    "locate",
    "loss",
    "memory",
    "per_example",
    "plots",
    "processes",
    "rows",
    "saving",
    "sharding",
    "shuffle",
    "stack",
    "train",
    "unstack",
    "value_and_grad",
    "vjp",
    "watch",
]
