"""The same equations over a mesh of devices, with each exchange of data named where it happens.

A mesh has two axes: "data" divides the examples, "model" the rows or columns of W. Each function
returns the cost and its gradients as `backprop` does, and can stand wherever it can, in jit or out.
On a mesh of one device it gives `backprop`'s bits; on more, sums over devices round in another
order. `volume` is what they send, in bytes; jax's own partitioner is the other way to the first of
them: put x and y on the mesh with `place`, and call `backprop` under `jax.jit`.
"""

import functools
from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxbackprop.backprop import backprop
from jaxbackprop.checkpoint import Description, Plan
from jaxbackprop.checkpoint.dense import checkpointed
from jaxbackprop.checkpoint.exchange import Exchange
from jaxbackprop.checkpoint.ties import held_back
from jaxbackprop.network import Layer, Network, Params, layers_in
from jaxbackprop.refusals import (
    check_columns,
    check_gradient,
    check_kind,
    check_params,
    check_whole,
    what,
)

# Legend: n neurons of a layer, p of the previous one, m examples; N devices along an axis.

Meshes = Mesh | AbstractMesh
Inputs = Float[Array, "p m"]
Targets = Float[Array, "n m"]
CostAndGradients = tuple[Float[Array, ""], Params]
Gradient = Callable[..., CostAndGradients]
Keep = Description | str  # what is kept of a forward pass
ALL = "every:1"
EXAMPLES = P(None, "data")


def make_mesh(data: int, model: int = 1) -> Mesh:
    """data × model devices. Raises ValueError where there are too few."""
    for name, number in (("data", data), ("model", model)):
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise ValueError(f"{name} is {number!r}, expected a whole number of devices")
    there = jax.device_count()
    if data < 1 or model < 1 or data * model > there:
        raise ValueError(f"a mesh of {data} × {model} devices: there are {there}")
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def check_mesh(mesh: object) -> None:
    """Raise ValueError unless it has the axes "data" and "model"."""
    if not isinstance(mesh, Meshes) or not {"data", "model"} <= {*mesh.axis_names}:
        found = mesh if isinstance(mesh, Meshes) else what(mesh)
        raise ValueError(f"mesh is {found}, expected one as sharding.make_mesh returns it")


def place(mesh: Mesh, tree, spec: P = EXAMPLES):
    """The arrays of a tree on the mesh: by default, examples in columns, divided."""
    check_mesh(mesh)
    check_kind("spec", spec, P, "a PartitionSpec such as sharding.EXAMPLES")
    return jax.device_put(tree, NamedSharding(mesh, spec))


def data_parallel(
    mesh: Meshes,
    network: Network,
    params: Params,
    x: Inputs,
    y: Targets,
    *,
    gradient: Gradient = backprop,
) -> CostAndGradients:
    """Every device has all parameters and m/N examples: BP3 and BP4 end in a psum.

    The sum over the examples is the sum over the devices of theirs. One all-reduce of the
    gradients and the cost. `gradient` is what each device does with its examples: `backprop`, with
    a checkpoint or without, `train.automatic`.
    Raises ValueError where N does not divide m.
    """
    _check(mesh, network, params, x)
    check_gradient(gradient)

    def local(params, x, y):
        sums = lax.psum(gradient(network, params, x, y), "data")
        return jax.tree.map(lambda total: total / mesh.shape["data"], sums)

    return _mapped(mesh, local, P(), EXAMPLES)(params, x, y)


def fully_sharded(
    mesh: Meshes, network: Network, params: Params, x: Inputs, y: Targets, *, checkpoint: Keep = ALL
) -> CostAndGradients:
    """Every device has 1/N of the parameters, by rows, and m/N examples.

    A layer is all-gathered before its forward and again before its backward step, and its gradient
    is reduce-scattered; in a stack this happens inside the scans, so that one layer is whole at a
    time (S. Rajbhandari et al., *ZeRO*, 2020, stage 3). A layer whose n is not a multiple of N
    stays whole everywhere, and its gradient ends in a psum.
    `checkpoint` is as in `backprop`, `every` or `within`; by default all is kept. A layer that is
    evaluated again is gathered again. The bytes of `within` are for the states of m/N examples,
    the layer in use comes on top. On host devices the bits are those of `data_parallel`
    among as many, whatever the `checkpoint`.
    Raises ValueError where N does not divide m.
    """
    _check(mesh, network, params, x)
    devices, n = mesh.shape["data"], network.sizes

    def whole(own, l):
        return own if n[l] % devices else lax.all_gather(own, "data", axis=0, tiled=True)

    def summed(gradient, l):
        if n[l] % devices:
            return Layer(*(lax.psum(g, "data") / devices for g in gradient))
        scatter = functools.partial(lax.psum_scatter, scatter_dimension=0, tiled=True)
        return Layer(*(scatter(g, "data") / devices for g in gradient))

    def anew(own, delta):
        return held_back(delta, own)

    exchange = Exchange(whole=whole, anew=anew, summed=summed)
    local = functools.partial(_local, network, checkpoint, exchange)
    return _mapped(mesh, local, specs(mesh, params, "data"), EXAMPLES)(params, x, y)


def tensor_parallel(
    mesh: Meshes, network: Network, params: Params, x: Inputs, y: Targets, *, checkpoint: Keep = ALL
) -> CostAndGradients:
    """Every device along "model" has 1/N of each W: of a pair of plain layers, the rows of the
    first and the columns of the second (M. Shoeybi et al., *Megatron-LM*, 2019).

    The first one's rows of z are what the second one's columns want: nothing is exchanged between
    them. The second z ends in a psum over "model", as does BP2 at the first; δ and σ′ between them
    stay divided too. A layer without a partner, and each of a stack, is divided by rows alone: its
    z is all-gathered. BP3 and BP4 of a device's share need no other's, and end in a psum over
    "data" as in `data_parallel`. Where N does not divide n a layer is computed whole everywhere.
    `checkpoint` is as in `fully_sharded`; an evaluation repeats what completes z. On host devices
    it changes no bit.
    Raises ValueError where the data axis does not divide m.
    """
    _check(mesh, network, params, x)
    devices, ways, l = mesh.shape["model"], {}, 1
    for layer, way in zip(params, _ways(mesh, params), strict=True):
        ways[l] = way
        l += layers_in(layer)

    def joined(product, b, l):
        if ways[l] == "columns":
            return lax.psum(product, "model") + b
        z = product + b
        return lax.all_gather(z, "model", axis=0, tiled=True) if ways[l] == "rows" else z

    def part(delta, l):
        if ways[l] != "rows":
            return delta
        rows = network.sizes[l] // devices
        return lax.dynamic_slice_in_dim(delta, lax.axis_index("model") * rows, rows)

    def error(delta, l):
        return lax.psum(delta, "model") if ways[l] in ("rows", "first") else delta

    def summed(gradient, l):
        return Layer(*(lax.psum(g, "data") / mesh.shape["data"] for g in gradient))

    exchange = Exchange(joined=joined, part=part, error=error, summed=summed)
    local = functools.partial(_local, network, checkpoint, exchange)
    return _mapped(mesh, local, specs(mesh, params, "model"), EXAMPLES)(params, x, y)


def _ways(mesh: Meshes, params: Params) -> tuple[str, ...]:
    """How `tensor_parallel` divides each entry: a pair's "first" and "columns", "rows", "whole"."""
    ways: list[str] = []
    for k, layer in enumerate(params):
        if ways and ways[-1] == "first":
            ways.append("columns")
        elif layer.W.shape[-2] % mesh.shape["model"]:
            ways.append("whole")
        else:
            pair = layer.W.ndim == 2 and k + 1 < len(params) and params[k + 1].W.ndim == 2
            ways.append("first" if pair else "rows")
    return tuple(ways)


def specs(mesh: Meshes, params: Params, axis: str) -> tuple:
    """How `fully_sharded` ("data") or `tensor_parallel` ("model") divides W and b."""
    check_mesh(mesh)
    if axis not in ("data", "model"):
        raise ValueError(f'axis is {axis!r}, expected "data" or "model"')
    found = []
    for layer, way in zip(params, _ways(mesh, params), strict=True):
        rows = P(*[None] * (layer.W.ndim - 2), axis)
        if axis == "model" and way == "columns":
            W, b = P(None, axis), P()
        else:
            W = b = P() if layer.W.shape[-2] % mesh.shape[axis] else rows
        found.append(jax.tree.unflatten(jax.tree.structure(layer), (W, b)))
    return tuple(found)


def volume(
    mesh: Meshes,
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
    if method not in (data_parallel, fully_sharded, tensor_parallel):
        raise ValueError(
            f"method is {method!r}, expected data_parallel, fully_sharded or tensor_parallel"
        )
    check_mesh(mesh)
    check_params(network, params)
    check_whole("batch", batch)
    if plan is not None:
        check_kind("plan", plan, Plan, "a Plan as checkpoint.plan returns it")
    if plan and plan.shape.network.sizes != network.sizes:
        raise ValueError(f"the plan is for {plan.shape}, the network has sizes {network.sizes}")
    data, model = mesh.shape["data"], mesh.shape["model"]
    m, itemsize = batch // data, params[0].W.dtype.itemsize
    sent = {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 0}

    def send(kind, numbers, devices):
        factor = 2 if kind == "all-reduce" else 1
        sent[kind] += factor * numbers * itemsize * (devices - 1) // devices

    evaluated, l = plan.evaluated if plan else (1,) * network.depth, 0
    for k, (layer, way) in enumerate(zip(params, _ways(mesh, params), strict=True)):
        depth, (n, p) = layers_in(layer), layer.W.shape[-2:]
        times, l = sum(evaluated[l : l + depth]), l + depth
        downwards = depth if k > 0 or layer.W.ndim == 3 else 0  # a stack's scan does BP2 for each
        share = depth * n * (p + 1)
        if method is fully_sharded and n % data == 0:
            send("all-gather", (n * p + n) * times + n * p * downwards, data)
            send("reduce-scatter", share, data)
            continue
        if method is tensor_parallel and way == "columns":
            send("all-reduce", n * m * times, model)
            share = n * (p // model + 1)
        elif method is tensor_parallel and way != "whole":
            send("all-gather", n * m * times * (way == "rows"), model)
            send("all-reduce", p * m * downwards, model)
            share //= model
        send("all-reduce", share, data)
    send("all-reduce", 1, data)  # the cost
    return sent


def _check(mesh: Meshes, network: Network, params: Params, x: Array) -> None:
    check_mesh(mesh)
    check_params(network, params)
    check_columns("x", x, network.sizes[0], params)
    if x.shape[1] % mesh.shape["data"]:
        raise ValueError(f"x has {x.shape[1]} examples, the mesh divides by {mesh.shape['data']}")


def _local(
    network: Network,
    checkpoint: Keep,
    exchange: Exchange,
    params: Params,
    x: Array,
    y: Array,
) -> CostAndGradients:
    """A device's forward and backward pass, with the exchanges between the equations."""
    own, gradients = checkpointed(checkpoint, network, params, x, y, exchange)
    return lax.pmean(own, "data"), gradients


def _mapped(mesh: Meshes, local: Gradient, held, examples: P) -> Gradient:
    """local on every device; the result of an all-gather counts as varying, hence check_vma."""
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(held, examples, examples),
        out_specs=(P(), held),
        check_vma=False,
    )
