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
    return max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs)


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
    print(json.dumps(compare()))
