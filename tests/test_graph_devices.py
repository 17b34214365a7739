"""shard_map and collectives inside a differentiated function: on four devices, and under vmap."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxbackprop.graph import grad
from jaxbackprop.graph.rules import RULES

BODIES = {
    "no exchange": lambda x, w: jnp.sin(x * w),
    "psum": lambda x, w: lax.psum(jnp.sin(x * w), "i") * x,
    "pmean over both": lambda x, w: lax.pmean((jnp.sin(x * w) * w).sum(), ("i", "j")) * w * x,
    "all_gather": lambda x, w: jnp.tanh(lax.all_gather(x * w, "i", tiled=True)),
    "psum_scatter": lambda x, w: jnp.tanh(lax.psum_scatter(x * w, "i", tiled=True)),
    "ppermute": lambda x, w: jnp.tanh(lax.ppermute(x * w, "i", [(0, 1)])),
    "all_to_all": lambda x, w: jnp.tanh(lax.all_to_all(x * w, "i", 0, 1, tiled=True)),
    "scan": lambda x, w: lax.scan(
        lambda c, _: (jnp.sin(c * w) + lax.psum(c, "i") / 3, None), x, None, length=3
    )[0],
    "checkpoint": jax.checkpoint(lambda x, w: jnp.sin(jnp.sin(x * w)) * lax.psum(x, "j")),
    "a rule of its own": lambda x, w: jax.nn.relu(lax.psum(x * w - 1, "i")) * x,
}

# On a mesh whose axes are part of each type: x is divided along both, w along the first.
own = jax.custom_vjp(lambda x: (jnp.sin(x), x))
own.defvjp(lambda x: (own(x), x), lambda x, cts: (cts[0] * jnp.cos(x) + cts[1],))
rows = lambda x: jax.sharding.reshard(x, P("i", None))  # noqa: E731
TYPED = {
    "a mean": lambda x, w: (x - x.mean(0, keepdims=True)) ** 3,
    "a product": lambda x, w: jnp.dot(x, w, out_sharding=P("i", "j")) ** 2,
    "another product": lambda x, w: jnp.einsum("ij,kj->ik", x, w, out_sharding=P(None, "i")) ** 2,
    "a number of all": lambda x, w: x.sum() * w,
    "where": lambda x, w: jnp.where(x > 1, x**2, jax.nn.softmax(x)),
    "scan": lambda x, w: lax.scan(lambda c, _: (jnp.sin(c), jnp.sqrt(c - c)), x, None, length=3)[0],
    "constants of a scan": lambda x, w: lax.scan(
        lambda c, _: (jnp.sin(c) * w.sum(), None), x, None, length=3
    )[0],
    "checkpoint": lambda x, w: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x),
    "cond": lambda x, w: lax.cond(w.sum() > 9, jnp.sin, jnp.cos, x),
    "one of two outputs": lambda x, w: own(x)[0],
    "a gather": lambda x, w: (
        jax.sharding.reshard(x, P(None, "j")).at[jnp.array([1, 2])].get(out_sharding=P(None, "j"))
        ** 2
    ),
    "the largest": lambda x, w: lax.top_k(rows(x), 2)[0] ** 2,
    "records": lambda x, w: lax.cummax(rows(x), 1) ** 2,
    "a product over devices": lambda x, w: jax.sharding.reshard(x, P(None, "j")).prod(1) ** 2,
    "an entry written": lambda x, w: rows(x).at[:, 1].set(0.5) ** 2,
    "a tile": lambda x, w: jnp.tile(rows(x), (1, 2)) ** 2,
    "shard_map": lambda x, w: jax.shard_map(
        lambda x: jnp.sin(x) * lax.psum(x.sum(), "i"), in_specs=P("i", "j"), out_specs=P("i", "j")
    )(x),
    "auto_axes": jax.sharding.auto_axes(
        lambda x, w: jnp.sin(x) @ x.T @ w, axes=("i", "j"), out_sharding=P("i", None)
    ),
}


if jax.__version_info__ >= (0, 12):  # jax.grad refuses it before
    TYPED["a sort"] = lambda x, w: jnp.sort(rows(x), axis=1) * w


def compare_typed():
    """How far from jax.grad each is, compiled together; they raise where a type is another."""
    mesh = jax.make_mesh((2, 2), ("i", "j"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        numbers = jnp.linspace(0.1, 2, 16).reshape(4, 4)
        x, w = jax.device_put(numbers, P("i", "j")), jax.device_put(numbers, P("i", None))
        losses = {name: (lambda x, w, f=f: f(x, w).sum()) for name, f in TYPED.items()}

        def gradients(grad):
            return {name: grad(loss, (0, 1))(x, w) for name, loss in losses.items()}

        ours, theirs = jax.jit(lambda: (gradients(grad), gradients(jax.grad)))()
        types = [jax.tree.map(jax.typeof, found) for found in (ours, theirs)]
        eager = grad(losses["a product"], (0, 1))(x, w)
        found = {f"{name}, typed": [far(ours[name], theirs[name])] for name in TYPED}
        found["a product, typed"].append(far(eager, theirs["a product"]))
        same = {name: types[0][name] == types[1][name] for name in TYPED}
        return found | {"types": same}


def compare():
    """On four devices: of each body, with and without jax's check, how far from jax.grad."""
    mesh = jax.make_mesh((2, 2), ("i", "j"), axis_types=(AxisType.Auto,) * 2)
    x, w = jnp.linspace(0.1, 2, 16).reshape(4, 4), jnp.float32(1.5)
    found = {}
    for name, body in BODIES.items():
        for checked in (True, False):
            options = {"mesh": mesh, "in_specs": (P("i", "j"), P()), "out_specs": P("i", "j")}
            f = jax.shard_map(body, check_vma=checked, **options)

            def loss(x, w, f=f):
                return jnp.sum(f(x, w) ** 2)

            def second(grad, loss=loss):
                return lambda x, w: grad(lambda x: (grad(loss)(x, w) ** 2).sum())(x)

            theirs = jax.jit(jax.grad(loss, (0, 1)))(x, w)
            ways = (grad(loss, (0, 1)), jax.jit(grad(loss, (0, 1))))
            found[f"{name}, {checked}"] = [far(way(x, w), theirs) for way in ways]
        found[f"{name}, twice"] = [
            far(jax.jit(second(grad))(x, w), jax.jit(second(jax.grad))(x, w))
        ]
    return found


def far(ours, theirs):
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs]
    return max(float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1)) for a, b in pairs)


@pytest.fixture(scope="module")
def four():
    here = pathlib.Path(__file__)
    path = os.pathsep.join(map(str, (here.parent, here.parents[1])))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    devices = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(here)],
        env=os.environ | devices | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("checked", [True, False, "twice"])
@pytest.mark.parametrize("name", BODIES)
def test_the_gradient_through_shard_map_is_jaxs(four, name, checked):
    assert max(four[f"{name}, {checked}"]) < 1e-5


@pytest.mark.parametrize("name", TYPED)
def test_the_gradient_is_divided_over_the_devices_as_its_argument_is(four, name):
    assert four["types"][name]
    assert max(four[f"{name}, typed"]) < 1e-5


ROWS = {
    "psum": lambda y: lax.psum(jnp.sin(y), "v"),
    "pmean": lambda y: lax.pmean(jnp.sin(y), "v") * y,
    "all_gather": lambda y: (lax.all_gather(y, "v") ** 3).sum(),
    "ppermute": lambda y: lax.ppermute(y * y, "v", [(i, (i + 1) % 4) for i in range(4)]) * y,
    "psum_scatter": lambda y: lax.psum_scatter(jnp.arange(4.0) * y * y, "v") * y,
    "all_to_all": lambda y: (lax.all_to_all(jnp.arange(4.0) * y * y, "v", 0, 0) * y).sum(),
}
Y = jnp.arange(1.0, 5.0)


@pytest.mark.parametrize("name", ROWS)
def test_the_gradient_of_an_exchange_between_the_rows_of_a_vmap_is_jaxs(name):
    f = ROWS[name]
    inside = [jax.vmap(g(f), axis_name="v")(Y) for g in (grad, jax.grad)]
    around = [g(lambda y: jax.vmap(f, axis_name="v")(y).sum())(Y) for g in (grad, jax.grad)]
    np.testing.assert_allclose(*inside, rtol=1e-6)
    np.testing.assert_allclose(*around, rtol=1e-6)


WRONG = {
    "psum": lambda cts, outs, x, **_: (lambda: cts[0],),
    "all_gather": lambda cts, outs, x, *, axis_name, **_: (
        lambda: cts[0][lax.axis_index(axis_name)],
    ),
    "ppermute": lambda cts, outs, x, *, axis_name, perm: (
        lambda: lax.ppermute(cts[0], axis_name, perm),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_transpose_is_noticed(name, monkeypatch):
    monkeypatch.setitem(RULES, name, WRONG[name])
    with pytest.raises(AssertionError):
        test_the_gradient_of_an_exchange_between_the_rows_of_a_vmap_is_jaxs(name)


if __name__ == "__main__":
    print(json.dumps(compare() | compare_typed()))
