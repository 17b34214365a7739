"""What people would use instead: each peer computes the same gradient and trains the same epoch.

A peer gets weights (W, b) of the text's shapes, inputs X and one-hot targets Y in rows, keeps them
as its own documentation would, and returns runs whose results `read` turns back into (W, b). A
package that is not installed leaves its peers out.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Sequence

from jaxbackprop import backprop, train
from peers.flax_equinox import equinox_epoch, equinox_gradient, flax_epoch, flax_gradient
from peers.jaxbackprops import as_others, as_params, ours, walked
from peers.pytorch import torch_peer, torch_products
from peers.text import text_epoch, text_gradient
from peers.work import WORKS, Run, Weights, Work, compiled, material

__all__ = [
    "PEERS",
    "WORKS",
    "Run",
    "Weights",
    "Work",
    "as_params",
    "compiled",
    "installed",
    "material",
    "print_peak_memory",
    "torch_products",
]

# name: (package it needs, one gradient, one epoch)
PEERS: dict[str, tuple[str, Callable, Callable]] = {
    "jaxbackprop": ("jax", *ours(backprop)),
    "the other form": ("jax", *ours(backprop, as_others)),
    "jax.grad": ("jax", *ours(train.automatic)),
    "graph wing": ("jax", *ours(walked)),
    "flax nnx": ("flax", flax_gradient, flax_epoch),
    "equinox": ("equinox", equinox_gradient, equinox_epoch),
    "torch eager": ("torch", *torch_peer(compile=False)),
    "torch.compile": ("torch", *torch_peer(compile=True)),
    "NumPy class": ("numpy", text_gradient, text_epoch),
}


def installed(names: Sequence[str] = tuple(PEERS)) -> list[str]:
    return [name for name in names if importlib.util.find_spec(PEERS[name][0])]


def print_peak_memory(peer: str, name: str) -> None:
    """Print the peak resident MiB of a process that computes the gradient three times.

    VmHWM is of this program; getrusage's maximum begins at that of the process which started it.
    """
    work = WORKS[name]
    run = PEERS[peer][1](work, *material(work, work.batch))
    for _ in range(3):
        run.call()
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)
