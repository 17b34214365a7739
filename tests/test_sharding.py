"""Over eight devices the gradients are one device's, and what is sent is what the theory says."""

import functools
import json
import os
import pathlib
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jaxbackprop import Network, init
from jaxbackprop.checkpoint import planning
from jaxbackprop.checkpoint.run import run
from jaxbackprop.exchange import Exchange
from jaxbackprop.network import layers_in

HERE = pathlib.Path(__file__).parent
CASES = [
    *(f"plain, {kind}" for kind in ("data", "data of 1", "full", "tensor", "tensor alone")),
    *(f"{name}, {kind}" for name in ("stack", "stack first") for kind in ("full", "tensor")),
]


@pytest.fixture(scope="module")
def eight():
    """Host devices are counted when jax starts, so another process has them."""
    path = os.pathsep.join(
        [
            str(HERE),
            str(HERE.parent),
            str(HERE.parent / "scripts"),
            os.environ.get("PYTHONPATH", ""),
        ]
    )
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(HERE / "on_eight_devices.py")],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_gradients_over_devices_are_those_of_one(eight, case):
    found = eight["compare"][case]
    assert found["g1"]
    assert found["cost"] <= 1e-6


@pytest.mark.parametrize("case", CASES)
def test_a_sum_over_devices_in_place_of_the_mean_is_noticed(eight, case):
    assert not eight["compare"][case]["sum_for_mean"]


@pytest.mark.parametrize("case", CASES)
def test_the_compiled_program_sends_what_the_theory_says(eight, case):
    assert eight["compare"][case]["counted"] == eight["compare"][case]["theory"]


def test_one_device_gives_the_same_bits(eight):
    assert eight["compare"]["plain, data of 1"]["bits"]


def test_the_equations_are_partitioned_by_jit_unchanged(eight):
    assert eight["jit"] == {"g1": True, "x": 8}


def test_grad_of_the_graph_wing_works_inside_shard_map(eight):
    assert eight["graph"]["g1"]


def test_grad_goes_through_a_sum_across_devices(eight):
    assert eight["graph"]["psum"]


def test_too_few_devices_and_an_uneven_batch_are_refused(eight):
    assert eight["refused"] == [
        "a mesh of 9 × 1 devices: there are 8",
        "x has 12 examples, the mesh divides by 8",
    ]


@pytest.mark.parametrize("kind", ["data", "full", "tensor"])
def test_the_plan_on_paper_is_the_compiled_program(eight, kind):
    found = eight["paper"][kind]
    plan = found["plan"]
    sent = {name: plan[f"{name}, bytes sent"] for name in found["counted"]}
    assert sent == found["counted"]
    assert plan["parameters, bytes"] == found["held"]
    assert plan["operations"] == pytest.approx(found["operations"], rel=0.15)  # what is not product


def test_gradients_over_devices_stay_those_of_one_where_layers_are_evaluated_again(eight):
    assert len(eight["recomputed"]) == 9
    assert all(eight["recomputed"].values()), eight["recomputed"]


@pytest.mark.parametrize("sizes", [(5, 16, 8, 16, 10), (5, *[16] * 21, 8), (16,) * 22])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_layer_is_made_whole_as_often_as_the_plan_says(sizes, k):
    """Loops whose length is data name no trip count in HLO: what they do is counted as it is done.

    A W is used once for each evaluation of its layer and once for BP2, a b for evaluations alone.
    """
    network, seen = Network(sizes, "tanh", "sigmoid"), Counter()

    def whole(own, n):
        kind = "b" if own.shape[1] == 1 else "W"
        jax.debug.callback(lambda array: seen.update([(kind, n)]), own)
        return own

    params = init(network, jax.random.key(0))
    x, y = jnp.ones((sizes[0], 4)), jnp.ones((sizes[-1], 4))
    plan = planning.every_plan(planning.shape_of(network, params, 4), k)
    gradient = functools.partial(run, network, plan.schedules, exchange=Exchange(whole=whole))
    jax.block_until_ready(jax.jit(gradient)(params, x, y))
    jax.effects_barrier()
    expected, l, evaluated = Counter(), 0, plan.evaluated
    assert sum(evaluated) == plan.evaluations
    assert (max(evaluated) > 1) == (1 < k < network.depth)
    for entry, layer in enumerate(params):
        for _ in range(layers_in(layer)):
            l += 1
            n = sizes[l]
            expected["b", n] += evaluated[l - 1]
            expected["W", n] += evaluated[l - 1] + (entry > 0 or layer.W.ndim == 3)
    assert seen == expected
