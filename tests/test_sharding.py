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

from jaxbackprop import Network, init, stack
from jaxbackprop.checkpoint import planning
from jaxbackprop.checkpoint.exchange import Exchange
from jaxbackprop.checkpoint.run import run
from jaxbackprop.network import layers_in

HERE = pathlib.Path(__file__).parent
CASES = [
    *(f"plain, {kind}" for kind in ("data", "data of 1", "full", "tensor", "tensor alone")),
    *(f"{name}, {kind}" for name in ("stack", "stack first") for kind in ("full", "tensor")),
    "pairs, tensor",
    *(f"pairs, {kind}, every(2)" for kind in ("data", "full", "tensor")),
    "pairs, tensor, every(3)",
    *(f"stack, {kind}, every(4)" for kind in ("data", "full", "tensor")),
]


def on_eight_devices(what, compiled):
    """Host devices are counted when jax starts, so another process has them."""
    own = str(HERE), str(HERE.parent), str(HERE.parent / "scripts")
    path = os.pathsep.join([*own, os.environ.get("PYTHONPATH", "")])
    flags = f"{compiled} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(HERE / "on_eight_devices.py"), what],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def eight():
    return on_eight_devices("gradients", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def bits():
    """Two programs of the same sums have the same bits where XLA fuses them as for users."""
    return on_eight_devices("bits", "")


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


@pytest.mark.parametrize("case", [case for case in CASES if "every" in case])
def test_what_is_sent_again_is_what_the_checkpoint_evaluates_again(eight, case):
    """In a stack by counting σ on the devices, where the trips of the loop are data. The first
    layer of a pair exchanges nothing, and every(2) evaluates no other again.
    """
    found = eight["compare"][case]
    assert found["planned again"] > 0
    assert found["again"] == (
        found["planned again"] if "stack" in case and "data" not in case else 0
    )
    assert (found["theory"] == found["theory of no plan"]) == (
        "data" in case or case == "pairs, tensor, every(2)"
    )


@pytest.mark.parametrize("kind", ["full", "tensor"])
def test_a_checkpoint_takes_less_memory_over_devices_as_well(eight, kind):
    stored, again = (eight["compare"][f"stack, {kind}{k}"] for k in ("", ", every(4)"))
    assert again["temporary"] < 0.7 * stored["temporary"]


def test_a_budget_of_bytes_is_a_checkpoint_over_devices_as_well(eight):
    assert eight["within"] == {"full": True, "tensor": True}


@pytest.mark.parametrize("name", ["pairs", "stack first"])
@pytest.mark.parametrize(
    "claim",
    [
        *(f"one device{method}" for method in ("", ", full", ", tensor")),
        *("full is data", "full, checkpoint", "tensor, checkpoint"),
    ],
)
def test_bits_that_are_said_to_be_the_same_are(bits, name, claim):
    assert bits[f"{name}: {claim}"]


@pytest.mark.parametrize("name", ["pairs", "stack first"])
def test_sums_in_another_order_have_other_bits(bits, name):
    assert not bits[f"{name}: data is one"]
    assert not bits[f"{name}: tensor is one"]


def test_a_pair_of_layers_has_no_gather_and_one_sum_each_way(eight):
    """(5, 16, 24, 8, 8, 16, 8) is three pairs: z of 24, 8 and 8, BP2 at 24 and 8, and gradients."""
    m, data, model = 8, 2, 4
    across = sum(2 * n * m * 4 * (model - 1) // model for n in (24, 8, 8, 24, 8))
    rows = sum(n * (p + 1) // model for n, p in ((16, 5), (8, 24), (16, 8)))
    columns = sum(n * (p // model + 1) for n, p in ((24, 16), (8, 8), (8, 16)))
    along = 2 * (rows + columns + 1) * 4 * (data - 1) // data
    found = eight["compare"]["pairs, tensor"]["counted"]
    assert found == {"all-gather": 0, "reduce-scatter": 0, "all-reduce": across + along}


def test_the_equations_are_partitioned_by_jit_unchanged(eight):
    assert eight["jit"] == {"g1": True, "x": 8}


def test_training_on_divided_rows_is_that_of_one_device(eight):
    found = eight["rows"]
    assert found["held"] == [26, 5]
    assert found["losses"] <= 1e-6
    assert 0 < found["parameters"] <= 1e-6  # sums over devices round in another order
    assert max(found["judged"]) <= 1e-6


def test_a_batch_of_divided_rows_is_one_sum_over_the_devices(eight):
    """Of batch × (inputs + outputs) numbers a step, beside the gradients: no row goes elsewhere."""
    assert eight["rows"]["sent"] == eight["rows"]["theory"]


def test_grad_of_the_graph_wing_works_inside_shard_map(eight):
    assert eight["graph"]["g1"]


def test_grad_goes_through_a_sum_across_devices(eight):
    assert eight["graph"]["psum"]


def test_what_cannot_be_divided_is_refused(eight):
    assert eight["refused"] == [
        "a mesh of 9 × 1 devices: there are 8",
        "x has 12 examples, the mesh divides by 8",
        "jax_segments exchanges nothing: take checkpoint.every or within",
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
    assert len(eight["recomputed"]) == 12
    assert all(eight["recomputed"].values()), eight["recomputed"]


@pytest.mark.parametrize("sizes", [(5, 16, 8, 16, 10), (5, *[16] * 21, 8), (16,) * 22])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_layer_is_made_whole_as_often_as_the_plan_says(sizes, k):
    """Loops whose length is data name no trip count in HLO: what they do is counted as it is done.

    A W is used once for each evaluation of its layer and once for BP2, a b for evaluations alone.
    """
    network, seen = Network(sizes, "tanh", "sigmoid"), Counter()

    def whole(own, l):
        kind, n = "b" if own.shape[1] == 1 else "W", sizes[l]
        jax.debug.callback(lambda array: seen.update([(kind, n)]), own)
        return own

    params = stack(init(network, jax.random.key(0)))
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
