"""What tests/test_sharding.py checks, run where jax has eight host devices: prints JSON.

The argument says which half: gradients, or bits.
"""

import functools
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scale_plan
from gates import g1

import jaxbackprop
from jaxbackprop import (
    Layer,
    Network,
    backprop,
    checkpoint,
    data,
    init,
    loss,
    rows,
    sharding,
    stack,
    train,
)
from jaxbackprop.activations import ACTIVATIONS, Activation
from jaxbackprop.checkpoint.planning import every_plan, shape_of
from jaxbackprop.devices.sharding import data_parallel, fully_sharded, tensor_parallel

NETWORKS = {
    "plain": Network((5, 16, 8, 10), "tanh", "softmax", "cross_entropy"),
    "pairs": Network((5, 16, 24, 8, 8, 16, 8), "gelu", "softmax", "cross_entropy"),
    "stack": Network((5, *[16] * 21, 8), "tanh", "sigmoid"),
    "stack first": Network((16,) * 22, "tanh", "sigmoid"),
}
METHODS = {
    "data": (data_parallel, (8, 1)),
    "data of 1": (data_parallel, (1, 1)),
    "full": (fully_sharded, (8, 1)),
    "tensor": (tensor_parallel, (2, 4)),
    "tensor alone": (tensor_parallel, (1, 8)),
}
CASES = [
    *(("plain", kind, None) for kind in METHODS),
    *((name, kind, None) for name in ("stack", "stack first") for kind in ("full", "tensor")),
    ("pairs", "tensor", None),
    *(("pairs", kind, 2) for kind in ("data", "full", "tensor")),
    ("pairs", "tensor", 3),
    *(("stack", kind, 4) for kind in ("data", "full", "tensor")),
]
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter)(?:-start)?\(")
ARRAY = re.compile(r"f32\[([\d,]*)\]")
GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")
NAMED_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")  # jax 0.12


def example(network, batch=16):
    keys = jax.random.split(jax.random.key(1), 3)
    params = tuple(Layer(layer.W, layer.b + 0.1) for layer in stack(init(network, keys[0])))
    x = jax.random.normal(keys[1], (network.sizes[0], batch))
    y = jax.nn.softmax(jax.random.normal(keys[2], (network.sizes[-1], batch)), axis=0)
    return params, x, y


def group_size(line: str) -> int:
    """Among how many devices a collective of compiled HLO goes on."""
    if named := NAMED_GROUPS.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    groups = GROUPS.search(line)
    assert groups, line
    return len(groups[1].split(",")) if groups[1] else int(groups[2])


def counted(text: str, again: int = 0) -> dict[str, int]:
    """Bytes sent by a device, from compiled HLO: every collective, times the trips of its loop.

    How many trips a stack's second evaluations take is data, a table: `again` of them in all.
    """
    bodies, name = {}, None
    for line in text.splitlines():
        if line and not line.startswith((" ", "}")) and line.rstrip().endswith("{"):
            name = "ENTRY" if line.startswith("ENTRY") else line.split()[0].lstrip("%")
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    sent = {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 0}

    def add(name, times):
        for line in bodies[name]:
            if found := COLLECTIVE.search(line):
                shapes = ARRAY.findall(found[1])
                numbers = sum(int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes)
                devices = group_size(line)
                factor = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": devices}[found[2]]
                sent[found[2]] += times * factor * 4 * numbers * (devices - 1) // devices
            if " while(" in line:
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                body = re.search(r"body=%?([\w.\-]+)", line)[1]
                add(body, times * int(trips[1]) if trips else again)
            elif called := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                add(called[1], times)

    add("ENTRY", 1)
    return sent


def evaluated_again(network, method, shape, k) -> int:
    """Hidden layers beyond the first evaluation of each, by counting σ on every device."""
    calls = []

    def value(z):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.tanh(z)

    sigma = Activation("counted", value, ACTIVATIONS["tanh"].derivative)
    counting = Network(network.sizes, sigma, network.output, network.loss)
    params, x, y = example(counting)
    run = functools.partial(method, checkpoint=checkpoint.every(k))
    jax.block_until_ready(jax.jit(functools.partial(run, sharding.make_mesh(*shape), counting))(
        params, x, y
    ))  # fmt: skip
    jax.effects_barrier()
    assert len(calls) % (shape[0] * shape[1]) == 0
    return len(calls) // (shape[0] * shape[1]) - (network.depth - 1)


def compare(network, method, shape, k=None):
    """method over a mesh beside one device; with k, every k-th activation kept."""
    params, x, y = example(network)
    mesh = sharding.make_mesh(*shape)
    found = k and every_plan(shape_of(network, params, x.shape[1] // shape[0]), k)
    again, run = 0, functools.partial(method, mesh, network)
    if k and method is data_parallel:
        gradient = functools.partial(backprop, checkpoint=checkpoint.every(k))
        run = functools.partial(run, gradient=gradient)
    elif k:
        run = functools.partial(run, checkpoint=checkpoint.every(k))
        stacked = any(layer.W.ndim == 3 for layer in params)
        again = evaluated_again(network, method, shape, k) if stacked else 0
    ĉost, reference = jax.jit(jax.value_and_grad(loss, argnums=1))(network, params, x, y)
    placed = on_mesh(mesh, params, method), *sharding.place(mesh, (x, y))
    compiled = jax.jit(run).lower(*placed).compile()
    cost, gradients = compiled(*placed)
    one_cost, one = jax.jit(backprop)(network, params, x, y)
    leaves = zip(jax.tree.leaves(gradients), jax.tree.leaves(one), strict=True)
    wrong = jax.tree.map(lambda g: 8 * g, gradients)
    theory = functools.partial(sharding.volume, mesh, network, params, x.shape[1], method)
    return {
        "g1": g1(gradients, reference, network.depth),
        "sum_for_mean": g1(wrong, reference, network.depth),
        "cost": abs(float(cost - ĉost)),
        "same cost": bool(cost == one_cost),
        "bits": all(bool(jnp.all(a == b)) for a, b in leaves),
        "counted": counted(compiled.as_text(), again),
        "theory": theory(found or None),
        "theory of no plan": theory(),
        "again": again,
        "planned again": found.evaluations - network.depth if k else 0,
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
    }


def bits():
    """Which results are the same to the last bit: (claim, network) → whether they are."""

    def result(method, shape, **options):
        mesh = sharding.make_mesh(*shape)
        placed = on_mesh(mesh, params, method), *sharding.place(mesh, (x, y))
        run = jax.jit(functools.partial(method, mesh, network, **options))
        return jax.device_get(run(*placed))

    def same(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(np.array_equal(one, other) for one, other in pairs)

    found, some = {}, {"checkpoint": checkpoint.every(3)}
    for name in ("pairs", "stack first"):
        network = NETWORKS[name]
        params, x, y = example(network)
        one = jax.device_get(jax.jit(backprop)(network, params, x, y))
        data, full = result(data_parallel, (8, 1)), result(fully_sharded, (8, 1))
        tensor = result(tensor_parallel, (1, 8))
        found |= {
            f"{name}: one device": same(result(data_parallel, (1, 1)), one),
            f"{name}: one device, full": same(result(fully_sharded, (1, 1)), one),
            f"{name}: one device, tensor": same(result(tensor_parallel, (1, 1)), one),
            f"{name}: full is data": same(full, data),
            f"{name}: full, checkpoint": same(result(fully_sharded, (8, 1), **some), full),
            f"{name}: tensor, checkpoint": same(result(tensor_parallel, (1, 8), **some), tensor),
            f"{name}: data is one": same(data[1], one[1]),
            f"{name}: tensor is one": same(tensor[1], one[1]),
        }
    return found


def within():
    """A number of bytes in place of every k-th activation: two thirds of what all take."""
    network, found = NETWORKS["stack"], {}
    params, x, y = example(network)
    reference = jax.jit(jax.grad(loss, argnums=1))(network, params, x, y)
    for kind in ("full", "tensor"):
        method, shape = METHODS[kind]
        mesh, m = sharding.make_mesh(*shape), x.shape[1] // shape[0]
        room = every_plan(shape_of(network, params, m), 1).bytes * 2 // 3
        run = functools.partial(method, mesh, network, checkpoint=checkpoint.within(room))
        placed = on_mesh(mesh, params, method), *sharding.place(mesh, (x, y))
        found[kind] = g1(jax.jit(run)(*placed)[1], reference, network.depth)
    return found


def on_mesh(mesh, params, method):
    axis = {fully_sharded: "data", tensor_parallel: "model"}.get(method)
    whole = jax.tree.map(lambda array: sharding.P(), params)
    specs = sharding.specs(mesh, params, axis) if axis else whole
    return jax.tree.map(functools.partial(sharding.place, mesh), params, specs)


def recomputed():
    """The same gradients with a schedule that evaluates layers again, by every method."""
    found = {}
    for name, network in NETWORKS.items():
        params, x, y = example(network)
        reference = jax.jit(jax.grad(loss, argnums=1))(network, params, x, y)
        strategy = checkpoint.every(3)
        backprop_again = functools.partial(backprop, checkpoint=strategy)
        for kind, method in {
            "data": functools.partial(data_parallel, gradient=backprop_again),
            "full": functools.partial(fully_sharded, checkpoint=strategy),
            "tensor": functools.partial(tensor_parallel, checkpoint=strategy),
        }.items():
            run = jax.jit(functools.partial(method, sharding.make_mesh(*METHODS[kind][1]), network))
            gradients = run(params, x, y)[1]
            found[f"{name}, {kind}"] = g1(gradients, reference, network.depth)
    return found


def partitioned():
    """jit and NamedSharding, no change to the equations."""
    network = NETWORKS["stack"]
    params, x, y = example(network)
    mesh = sharding.make_mesh(8)
    x, y = sharding.place(mesh, (x, y))
    params = sharding.place(mesh, params, sharding.P())
    gradients = jax.jit(backprop)(network, params, x, y)[1]
    reference = jax.jit(jax.grad(loss, argnums=1))(network, params, x, y)
    return {"g1": g1(gradients, reference, network.depth), "x": len(x.sharding.device_set)}


def divided_rows(steps=3, batch=16):
    """Training on rows of which each device has some; 203 are no multiple of 8."""
    network, rng = NETWORKS["plain"], np.random.default_rng(0)
    inputs, labels = rng.standard_normal((203, 5), "f4"), rng.integers(0, 10, 203)
    mesh, optimizer = sharding.make_mesh(8), optax.sgd(0.1)
    divided = rows.divide(mesh, data.Split(inputs, labels, range(203)), 10)
    state = rows.everywhere(mesh, train.start(network, optimizer, jax.random.key(0)))
    shapes = jax.eval_shape(lambda: state.params)
    run = rows.run.lower(network, optimizer, state, divided, batch=batch, steps=steps).compile()
    ended, metrics = run(state, divided)
    own = inputs, data.one_hot(labels, 10)
    one = train.start(network, optimizer, jax.random.key(0))
    one, expected = train.run(network, optimizer, one, *own, batch=batch, steps=steps)
    gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), ended.params, one.params)
    judged = rows.evaluate(network, ended.params, divided)
    gradients = sharding.volume(mesh, network, shapes, batch, data_parallel)
    return {
        "parameters": max(jax.tree.leaves(gaps)),
        "losses": float(jnp.max(jnp.abs(metrics.loss - expected.loss))),
        "judged": np.abs(np.subtract(judged, train.evaluate(network, one.params, *own))).tolist(),
        "held": divided.inputs.addressable_shards[0].data.shape,
        "sent": counted(run.as_text()),
        "theory": {
            name: steps * (number + (name == "all-reduce") * 2 * batch * (5 + 10) * 4 * 7 // 8)
            for name, number in gradients.items()
        },
    }


def graph_wing():
    """jaxbackprop.grad inside shard_map, of the device's own examples; the psum stands outside."""
    network = NETWORKS["plain"]
    params, x, y = example(network)
    mesh = sharding.make_mesh(8)

    def local(params, x, y):
        own = jaxbackprop.grad(lambda params: loss(network, params, x, y))(params)
        return jax.tree.map(lambda g: jax.lax.pmean(g, "data"), own)

    P, examples = sharding.P, sharding.EXAMPLES
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), examples, examples), out_specs=P(), check_vma=False
    )
    reference = jax.grad(loss, argnums=1)(network, params, x, y)
    found = {"g1": g1(jax.jit(mapped)(params, x, y), reference, network.depth)}

    def whole(params, x, y):
        """The mean over all devices, differentiated with its psum; what varies is checked."""
        mean = lambda params: jax.lax.pmean(loss(network, params, x, y), "data")  # noqa: E731
        return jaxbackprop.grad(mean)(params)

    checked = jax.shard_map(whole, mesh=mesh, in_specs=(P(), examples, examples), out_specs=P())
    return found | {"psum": g1(jax.jit(checked)(params, x, y), reference, network.depth)}


def refused():
    network = NETWORKS["plain"]
    params, x, y = example(network, batch=12)
    messages = []
    for call in (
        lambda: sharding.make_mesh(9),
        lambda: data_parallel(sharding.make_mesh(8), network, params, x, y),
        lambda: fully_sharded(
            sharding.make_mesh(4), network, params, x, y, checkpoint=checkpoint.jax_segments(2)
        ),
    ):
        try:
            call()
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    return messages


def on_paper():
    """scripts/scale_plan.py beside the compiled program of the same step."""
    sizes, batch, found = (16, 64, 32, 8), 64, {}
    network = Network(sizes, "relu", "softmax", "cross_entropy")
    for kind, shape in {"data": (8, 1), "full": (8, 1), "tensor": (2, 4)}.items():
        options = scale_plan.Options(sizes, batch, *shape, method=kind)
        params, x, y = example(network, batch)
        mesh = sharding.make_mesh(*shape)
        put = on_mesh(mesh, params, scale_plan.METHODS[kind])
        run = jax.jit(functools.partial(scale_plan.METHODS[kind], mesh, network))
        compiled = run.lower(put, *sharding.place(mesh, (x, y))).compile()
        examples = 4 * (sizes[0] + sizes[-1]) * batch // shape[0]
        found[kind] = {
            "plan": scale_plan.plan(options),
            "counted": counted(compiled.as_text()),
            "held": compiled.memory_analysis().argument_size_in_bytes - examples,
            "operations": compiled.cost_analysis()["flops"],
        }
    return found


def gradients():
    compared = {
        f"{name}, {kind}" + (f", every({k})" if k else ""): compare(
            NETWORKS[name], *METHODS[kind], k
        )
        for name, kind, k in CASES
    }
    return {
        "compare": compared,
        "within": within(),
        "jit": partitioned(),
        "rows": divided_rows(),
        "graph": graph_wing(),
        "refused": refused(),
        "paper": on_paper(),
        "recomputed": recomputed(),
    }


if __name__ == "__main__":
    print(json.dumps({"gradients": gradients, "bits": bits}[sys.argv[1]]()))
