"""Rows that are divided train as those of one device do. Eight devices: tests/test_sharding.py."""

import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from jaxbackprop import Network, data, flow, rows, sharding, train

NETWORK = Network((5, 8, 3), "relu", "softmax", "cross_entropy")
SPLIT = data.Split(
    np.random.default_rng(0).random((43, 5), dtype="f4"), np.arange(43) % 3, range(43)
)


def start():
    return train.start(NETWORK, optax.adam(1e-2), jax.random.key(0))


@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (1, 4), (2, 2), (2, 4), (3, 12)])
@pytest.mark.parametrize("examples", [1, 7, 12, 203])
def test_the_shares_of_the_processes_are_the_data_once(processes, devices, examples, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares += rows.share(examples, devices)
    assert shares == list(range(examples))


PLAIN = "fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")  # see conftest.py


@pytest.mark.skipif(not PLAIN, reason="the bits are compared in this very process")
def test_the_bits_are_compared_as_users_compile():
    """Two programs of the same operations have the same bits where XLA fuses them as it likes."""
    command = [sys.executable, "-m", "pytest", "-n0", "-q", __file__, "-k", "bits_are_those"]
    done = subprocess.run(
        command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True
    )
    assert "2 passed" in done.stdout, done.stdout


@pytest.mark.skipif(PLAIN, reason="plain machine code is fused otherwise")
@pytest.mark.parametrize("looks", [{}, {"watch": flow.active, "observe": flow.observe}])
def test_on_one_device_the_bits_are_those_of_train(looks):
    divided = rows.divide(sharding.make_mesh(1), SPLIT, 3)
    plain = SPLIT.inputs, data.one_hot(SPLIT.labels, 3)
    optimizer = optax.adam(1e-2)
    state = rows.everywhere(divided.mesh, start())
    ended, metrics = rows.run(NETWORK, optimizer, state, divided, batch=4, **looks)
    expected, seen = train.run(NETWORK, optimizer, start(), *plain, batch=4, **looks)
    assert len(metrics.loss) == 10
    for one, other in zip(
        jax.tree.leaves((ended._replace(key=0), metrics)),
        jax.tree.leaves((expected._replace(key=0), seen)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert jax.random.key_data(ended.key).tolist() == jax.random.key_data(expected.key).tolist()
    judged = rows.evaluate(NETWORK, ended.params, divided)
    np.testing.assert_allclose(judged, train.evaluate(NETWORK, expected.params, *plain), rtol=1e-6)


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(ValueError, match=r"labels\[2\] is 2, expected 0 … 1"):
        rows.divide(sharding.make_mesh(1), SPLIT, 2)
