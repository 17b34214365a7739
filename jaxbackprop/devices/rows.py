"""A data set whose rows stay divided among the devices of a mesh, and training on it.

Each process reads the inputs of its own rows, its `share`, and its devices keep them. A batch is
that of one device: it is taken from the rows wherever they are, and each device then gets its
columns of it, as `sharding.data_parallel` wants them. A mesh may have one device.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxbackprop.backprop import backprop
from jaxbackprop.devices import sharding
from jaxbackprop.network import Network, Params
from jaxbackprop.refusals import check_kind, check_whole
from jaxbackprop.training import train
from jaxbackprop.training.data import Split, one_hot

# Legend: N examples in rows, p inputs, n outputs; "padded" is N up to a multiple of the devices.


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("inputs", "targets"),
    meta_fields=("examples", "mesh"),
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """`examples` rows, divided along "data"; zeros follow the last, as many for each device."""

    inputs: Float[Array, "padded p"]
    targets: Float[Array, "padded n"]
    examples: int
    mesh: Mesh


def _check_rows(rows: object) -> None:
    check_kind("rows", rows, Rows, "those of rows.divide")


def share(examples: int, devices: int) -> range:
    """The rows that this process reads: those of its devices, as equal as can be."""
    check_whole("examples", examples, least=0)
    check_whole("devices", devices)
    each = -(-examples // devices) * (devices // jax.process_count())
    first = min(jax.process_index() * each, examples)
    return range(first, min(first + each, examples))


def divide(mesh: Mesh, split: Split, classes: int) -> Rows:
    """Inputs and one-hot targets of each process's share, divided among the devices.

    Raises ValueError as `data.one_hot` does.
    """
    sharding.check_mesh(mesh)
    check_kind("split", split, Split, "a data.Split")
    examples, devices = len(split.labels), mesh.shape["data"]
    targets = np.asarray(one_hot(split.labels, classes))[split.rows.start : split.rows.stop]
    room = -(-examples // devices) * (devices // jax.process_count())

    def placed(own):
        padded = np.pad(own, ((0, room - len(own)), (0, 0)))
        return jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), padded)

    return Rows(placed(split.inputs), placed(targets), examples, mesh)


def everywhere(mesh: Mesh, state: train.State) -> train.State:
    """The state, which each process has, on all devices."""
    train.check_state(state)
    held = state._replace(key=jax.random.key_data(state.key))  # numbers can be placed
    held = sharding.place(mesh, jax.device_get(held), P())
    return held._replace(key=jax.random.wrap_key_data(held.key))


@functools.partial(
    jax.jit,
    static_argnames=(
        *("network", "optimizer", "batch", "steps"),
        *("gradient", "watch", "observe"),
    ),
    donate_argnames="state",
)
def run(
    network: Network,
    optimizer: optax.GradientTransformation,
    state: train.State,
    rows: Rows,
    *,
    batch: int,
    steps: int | None = None,
    gradient: train.Gradient = backprop,
    watch: train.Observe | None = None,
    observe: train.Observe | None = None,
) -> tuple[train.State, train.Metrics]:
    """`train.run` on divided rows; `gradient` is of each device's part of a batch.

    A batch reaches its devices by one sum of batch × (p + n) numbers over all of them, which XLA
    makes of the gather: each adds its own rows, and zeros. Raises ValueError as `train.run` and
    `sharding.data_parallel` do.
    """
    _check_rows(rows)
    if rows.mesh.size > 1:
        gradient = functools.partial(sharding.data_parallel, rows.mesh, gradient=gradient)
    ended = train.run(
        *(network, optimizer, state),
        *(rows.inputs[: rows.examples], rows.targets[: rows.examples]),
        batch=batch,
        steps=steps,
        gradient=gradient,
        watch=watch,
        observe=observe,
    )
    return lax.with_sharding_constraint(ended, NamedSharding(rows.mesh, P()))


@functools.partial(jax.jit, static_argnames="network")
def evaluate(
    network: Network, params: Params, rows: Rows
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`train.evaluate` on divided rows: each device judges its own."""
    _check_rows(rows)
    judged = jax.shard_map(
        functools.partial(train.judge, network),
        mesh=rows.mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P("data"),
        check_vma=False,
    )
    costs, right = (each[: rows.examples] for each in judged(params, rows.inputs, rows.targets))
    return jnp.mean(costs), jnp.mean(right.astype(costs.dtype))
