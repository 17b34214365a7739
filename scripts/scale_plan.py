"""What a training step costs on a mesh of devices, on paper, in a few seconds.

    python scripts/scale_plan.py --data 64
    python scripts/scale_plan.py --sizes 8192 8192 8192 10 --batch 65536 --data 256 --model 8 \
        --method tensor --flops 4e14 --bandwidth 5e10

The step is traced with abstract shapes for an abstract mesh, which says whether it can run at all.
The bytes sent are those of ring algorithms (`jaxbackprop.sharding.volume`); operations are
those of the matrix products. The lower bound of a step is the larger of its arithmetic and its
communication, as if they overlapped perfectly. The optimizer's state is not counted.
"""

import dataclasses
import functools
from typing import Literal

import command  # noqa: F401
import jax
import jax.numpy as jnp
import tyro
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from parts.arguments import check
from rich.console import Console
from rich.table import Table

from jaxbackprop import Network, init, sharding
from jaxbackprop.network import Params

METHODS = {
    "data": sharding.data_parallel,
    "full": sharding.fully_sharded,
    "tensor": sharding.tensor_parallel,
}
AXES = {"data": None, "full": "data", "tensor": "model"}


@dataclasses.dataclass(frozen=True)
class Options:
    """The network, the mesh, and what a device can do."""

    sizes: tuple[int, ...] = (4096, 4096, 4096, 10)
    """Layer widths, input first."""
    batch: int = 8192
    """Examples in a step, of all devices together."""
    data: int = 1
    """Devices among which the examples are divided."""
    model: int = 1
    """Devices among which the rows of W are divided (--method tensor)."""
    method: Literal["data", "full", "tensor"] = "data"
    """Data parallel, fully sharded, tensor parallel."""
    flops: float = 1e14
    """Of a device, a second."""
    bandwidth: float = 5e10
    """Bytes that a device sends in a second."""

    def __post_init__(self) -> None:
        check(self, batch=1, data=1, model=1, flops=1, bandwidth=1)


def held(mesh: AbstractMesh, params: Params, axis: str | None) -> Params:
    """The shapes of one device's parameters."""
    if axis is None:
        return params
    specs = sharding.specs(mesh, params, axis)
    return jax.tree.map(
        lambda a, spec: jax.ShapeDtypeStruct(
            NamedSharding(mesh, spec).shard_shape(a.shape), a.dtype
        ),
        params,
        specs,
    )


def held_bytes(mesh: AbstractMesh, params: Params, axis: str | None) -> int:
    """Bytes of parameters on one device."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(held(mesh, params, axis)))


def work(mesh: AbstractMesh, params: Params, batch: int, axis: str | None) -> int:
    """Multiplications and additions of a device: two products of a layer, three above the first."""
    own = held(mesh, params, axis) if axis == "model" else params  # fully sharded: gathered first
    total = 0
    for k, layer in enumerate(own):
        products = 3 if k or layer.W.ndim == 3 else 2
        total += products * 2 * layer.W.size * (batch // mesh.shape["data"])
    return total


def plan(options: Options) -> dict[str, float]:
    """The figures of one step on one device, after lowering its program."""
    network = Network(options.sizes, "relu", "softmax", "cross_entropy")
    shape = (options.data, options.model)
    mesh = AbstractMesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params = jax.eval_shape(functools.partial(init, network), jax.random.key(0))
    x, y = (
        jax.ShapeDtypeStruct((n, options.batch), jnp.float32)
        for n in (options.sizes[0], options.sizes[-1])
    )
    method, axis = METHODS[options.method], AXES[options.method]
    _, gradients = jax.eval_shape(functools.partial(method, mesh, network), params, x, y)
    sent = sharding.volume(mesh, network, params, options.batch, method)
    m = options.batch // options.data
    flops = work(mesh, params, options.batch, axis)
    return {
        "parameters, bytes": held_bytes(mesh, params, axis),
        "gradients, bytes": held_bytes(mesh, gradients, axis),
        "a state of each layer, bytes at most": 4 * m * sum(options.sizes),
        "operations": flops,
        **{f"{kind}, bytes sent": number for kind, number in sent.items()},
        "arithmetic, s": flops / options.flops,
        "communication, s": sum(sent.values()) / options.bandwidth,
        "lower bound of a step, s": max(
            flops / options.flops, sum(sent.values()) / options.bandwidth
        ),
    }


def main(options: Options) -> None:
    table = Table("of one device", "a step")
    for name, figure in plan(options).items():
        table.add_row(name, f"{figure:,}" if isinstance(figure, int) else f"{figure:.3g}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
