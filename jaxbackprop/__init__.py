"""Backpropagation written out by hand in JAX, to see, check and own the backward pass.

Two wings, which check each other: the four equations for dense networks (`Network`, `init`,
`forward`, `loss`, `backward`, `backprop`), and the reverse walk over the computation graph of any
JAX function (`grad`, `value_and_grad`, `vjp`, `inspect`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxbackprop import check, checkpoint, equations, flow, per_example
from jaxbackprop.backprop import Backward, backprop, backward
from jaxbackprop.forward import forward, loss
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
from jaxbackprop.initialisation import init
from jaxbackprop.network import Layer, Network, Trace
from jaxbackprop.stacks import stack, unstack

if TYPE_CHECKING:
    from jaxbackprop.devices import processes, rows, sharding
    from jaxbackprop.training import data, memory, plots, saving, shuffle, train

# Of the rooms that need more than JAX, each module is imported when it is first asked for; what is
# missing then, of which extra, is said in one sentence.
_LATER = {
    "data": ("training", "train"),
    "memory": ("training", "train"),
    "plots": ("training", "plot"),
    "saving": ("training", "train"),
    "shuffle": ("training", "train"),
    "train": ("training", "train"),
    "processes": ("devices", "train"),
    "rows": ("devices", "train"),
    "sharding": ("devices", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'jaxbackprop' has no attribute {name!r}")
    room, extra = _LATER[name]
    try:
        return importlib.import_module(f"jaxbackprop.{room}.{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"jaxbackprop.{name} needs {error.name}: pip install 'jaxbackprop[{extra}]'",
            name=error.name,
        ) from error


__all__ = [
    "Backward",
    "Inspection",
    "Layer",
    "Network",
    "Trace",
    "UnsupportedPrimitive",
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
