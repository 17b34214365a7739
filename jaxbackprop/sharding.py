"""The same equations over a mesh of devices, with each exchange of data named where it happens.

A mesh has two axes: "data" divides the examples, "model" the rows of W. Each function returns the
cost and its gradients as `backprop` does, and can stand wherever `backprop` can, in jit or out.
`volume` is what they send, in bytes; jax's own partitioner is the other way to the first of them:
put x and y on the mesh with `place`, and call `backprop` under `jax.jit`.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxbackprop.backprop import backprop
from jaxbackprop.checkpoint import Plan, every
from jaxbackprop.exchange import Exchange
from jaxbackprop.network import Layer, Network, Params, check_columns, check_params, layers_in
from jaxbackprop.ties import held_back

# Legend: n neurons of a layer, p of the previous one, m examples; N devices along an axis.

Gradient = Callable[..., tuple[Float[Array, ""], Params]]
EXAMPLES = P(None, "data")
KEEP_ALL = every(1)


def make_mesh(data: int, model: int = 1) -> Mesh:
    """data × model devices. Raises ValueError where there are too few."""
    there = jax.device_count()
    if data < 1 or model < 1 or data * model > there:
        raise ValueError(f"a mesh of {data} × {model} devices: there are {there}")
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def place(mesh: Mesh, tree, spec: P = EXAMPLES):
    """The arrays of a tree on the mesh: by default, examples in columns, divided."""
    return jax.device_put(tree, NamedSharding(mesh, spec))


def own_rows(examples: int, devices: int) -> range:
    """The rows of a data set that this process reads: those of its devices, as equal as can be."""
    each = -(-examples // devices) * (devices // jax.process_count())
    first = min(jax.process_index() * each, examples)
    return range(first, min(first + each, examples))


def gathered(mesh: Mesh, own: Float[np.ndarray, "own p"], examples: int) -> Float[Array, "N p"]:
    """The rows that each process has read, `own_rows`, on every device: one all-gather."""
    devices = mesh.shape["data"]
    each = -(-examples // devices)
    missing = each * (devices // jax.process_count()) - len(own)  # N need not be a multiple
    padded = jax.make_array_from_process_local_data(
        NamedSharding(mesh, P("data")), np.pad(own, ((0, missing), (0, 0)))
    )
    return jax.jit(lambda rows: rows[:examples], out_shardings=NamedSharding(mesh, P()))(padded)


def data_parallel(
    mesh: Mesh | AbstractMesh,
    network: Network,
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    *,
    gradient: Gradient = backprop,
) -> tuple[Float[Array, ""], Params]:
    """Every device has all parameters and m/N examples: BP3 and BP4 end in a psum.

    The sum over the examples is the sum over the devices of theirs. One all-reduce of the
    gradients and the cost. `gradient` is what each device does with its examples: `backprop`, one
    of :mod:`jaxbackprop.checkpoint`'s schedules, `train.automatic`.
    Raises ValueError where N does not divide m.
    """
    _check(mesh, network, params, x)

    def local(params, x, y):
        sums = lax.psum(gradient(network, params, x, y), "data")
        return jax.tree.map(lambda total: total / mesh.shape["data"], sums)

    return _mapped(mesh, local, P(), EXAMPLES)(params, x, y)


def fully_sharded(
    mesh: Mesh | AbstractMesh,
    network: Network,
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    *,
    checkpoint: Callable = KEEP_ALL,
) -> tuple[Float[Array, ""], Params]:
    """Every device has 1/N of the parameters, by rows, and m/N examples.

    A layer is all-gathered before its forward and again before its backward step, and its gradient
    is reduce-scattered; in a stack this happens inside the scans, so that one layer is whole at a
    time (S. Rajbhandari et al., *ZeRO*, 2020, stage 3). A layer whose n is not a multiple of N
    stays whole everywhere, and its gradient ends in a psum.
    `checkpoint` is one of :mod:`jaxbackprop.checkpoint`'s schedules, `every` or `within`: a layer
    that is evaluated again is gathered again.
    Raises ValueError where N does not divide m.
    """
    _check(mesh, network, params, x)
    devices = mesh.shape["data"]

    def whole(own, n):
        return own if n % devices else lax.all_gather(own, "data", axis=0, tiled=True)

    def summed(gradient, n):
        if n % devices:
            return Layer(*(lax.psum(g, "data") / devices for g in gradient))
        scatter = functools.partial(lax.psum_scatter, scatter_dimension=0, tiled=True)
        return Layer(*(scatter(g, "data") / devices for g in gradient))

    def anew(own, delta):
        return held_back(delta, own)

    exchange = Exchange(whole=whole, anew=anew, summed=summed)
    local = functools.partial(_local, network, checkpoint, exchange)
    return _mapped(mesh, local, specs(mesh, params, "data"), EXAMPLES)(params, x, y)


def tensor_parallel(
    mesh: Mesh | AbstractMesh,
    network: Network,
    params: Params,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    *,
    checkpoint: Callable = KEEP_ALL,
) -> tuple[Float[Array, ""], Params]:
    """Every device along "model" has 1/N of the rows of each W, which are columns of Wᵀ.

    Rows give a part of z, all-gathered; columns give a term of BP2's Wᵀδ, which ends in a psum over
    "model". BP3 and BP4 of a device's rows need no other's, and end in a psum over "data" as in
    `data_parallel`. A layer whose n is not a multiple of N is computed whole everywhere.
    `checkpoint` is as in `fully_sharded`: of a layer that is evaluated again z is gathered again.
    Raises ValueError where the data axis does not divide m.
    """
    _check(mesh, network, params, x)
    devices = mesh.shape["model"]

    def joined(z, n):
        return z if n % devices else lax.all_gather(z, "model", axis=0, tiled=True)

    def part(delta, n):
        rows = n // devices
        first = lax.axis_index("model") * rows
        return delta if n % devices else lax.dynamic_slice_in_dim(delta, first, rows)

    def error(delta, n):
        return delta if n % devices else lax.psum(delta, "model")

    def summed(gradient, n):
        return Layer(*(lax.psum(g, "data") / mesh.shape["data"] for g in gradient))

    exchange = Exchange(joined=joined, part=part, error=error, summed=summed)
    local = functools.partial(_local, network, checkpoint, exchange)
    return _mapped(mesh, local, specs(mesh, params, "model"), EXAMPLES)(params, x, y)


def specs(mesh: Mesh | AbstractMesh, params: Params, axis: str) -> tuple:
    """Rows of W and b along an axis of the mesh, where it divides them; else whole."""

    def rows(array):
        divides = array.shape[-2] % mesh.shape[axis] == 0
        return P(*[None] * (array.ndim - 2), axis) if divides else P()

    return jax.tree.map(rows, params)


def volume(
    mesh: Mesh | AbstractMesh,
    network: Network,
    params: Params,
    batch: int,
    method: Callable,
    plan: Plan | None = None,
) -> dict[str, int]:
    """Bytes that a device sends in one step of `method`, by collective, with ring algorithms.

    An all-gather or reduce-scatter of B bytes among N sends B (N − 1)/N, an all-reduce twice that
    (P. Patarasuk and X. Yuan, *Bandwidth optimal all-reduce algorithms*, 2009). params may be
    shapes, as `jax.eval_shape` gives them; `plan` says how often a layer is evaluated, by default
    once.
    """
    data, model = mesh.shape["data"], mesh.shape["model"]
    m, itemsize = batch // data, params[0].W.dtype.itemsize
    sent = {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 0}

    def send(kind, numbers, devices):
        factor = 2 if kind == "all-reduce" else 1
        sent[kind] += factor * numbers * itemsize * (devices - 1) // devices

    evaluated, l = plan.evaluated if plan else (1,) * network.depth, 0
    for k, layer in enumerate(params):
        depth, (n, p) = layers_in(layer), layer.W.shape[-2:]
        weights, biases = depth * n * p, depth * n
        times, l = sum(evaluated[l : l + depth]), l + depth
        downwards = k > 0 or layer.W.ndim == 3  # BP2; a stack's scan does it for layer 1 as well
        if method is fully_sharded and n % data == 0:
            send("all-gather", (n * p + n) * times + weights * downwards, data)
            send("reduce-scatter", weights + biases, data)
        elif method is tensor_parallel and n % model == 0:
            send("all-gather", times * n * m, model)
            send("all-reduce", depth * p * m * downwards, model)
            send("all-reduce", (weights + biases) // model, data)
        else:
            send("all-reduce", weights + biases, data)
    send("all-reduce", 1, data)  # the cost
    return sent


def _check(mesh: Mesh | AbstractMesh, network: Network, params: Params, x: Array) -> None:
    check_params(network, params)
    check_columns("x", x, network.sizes[0], params)
    if x.shape[1] % mesh.shape["data"]:
        raise ValueError(f"x has {x.shape[1]} examples, the mesh divides by {mesh.shape['data']}")


def _local(
    network: Network, strategy: Callable, exchange: Exchange, params: Params, x: Array, y: Array
) -> tuple[Float[Array, ""], Params]:
    """A device's forward and backward pass, with the exchanges between the equations."""
    own, gradients = strategy(network, params, x, y, exchange)
    return lax.pmean(own, "data"), gradients


def _mapped(mesh: Mesh | AbstractMesh, local: Gradient, held, examples: P) -> Gradient:
    """local on every device; the result of an all-gather counts as varying, hence check_vma."""
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(held, examples, examples),
        out_specs=(P(), held),
        check_vma=False,
    )
