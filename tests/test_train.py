"""Learning: a run is the plain loop that it abbreviates, and it goes on from any state."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbackprop import Network, backprop, data, shuffle, stack, train

NETWORK = Network((4, 8, 3), "tanh", "softmax", "cross_entropy")
SGD = optax.sgd(0.1)
INPUTS = jax.random.normal(jax.random.key(1), (50, 4))
TARGETS = data.one_hot(np.arange(50) % 3, 3)


def begin(optimizer=SGD, network=NETWORK):
    return train.start(network, optimizer, jax.random.key(0))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, _plain(a), _plain(b))


def _plain(state):
    return state._replace(key=jax.random.key_data(state.key))


@pytest.mark.parametrize(
    "optimizer", [SGD, optax.sgd(0.1, momentum=0.9), optax.adam(1e-2), optax.lion(1e-3)]
)
def test_an_epoch_is_a_python_loop_over_shuffled_batches(optimizer):
    state = begin(optimizer)
    params, opt_state = state.params, state.opt_state
    order = shuffle.permuted(jax.random.fold_in(state.key, 0), jnp.arange(50), 50)
    losses = []
    for i in range(6):
        rows = order[8 * i : 8 * i + 8]
        cost, gradients = backprop(NETWORK, params, INPUTS[rows].T, TARGETS[rows].T)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(cost)
    state, metrics = train.run(NETWORK, optimizer, state, INPUTS, TARGETS, batch=8)
    assert state.step == 6
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, params
    )


def test_each_epoch_has_an_order_of_its_own_with_each_example_at_most_once():
    network = Network((1, 1), output="identity")
    inputs = jnp.arange(12.0)[:, None]
    seen = []

    def record(network, params, x, y):
        jax.debug.callback(lambda x: seen.append(np.array(x).ravel()), x, ordered=True)
        return jnp.float32(0), jax.tree.map(jnp.zeros_like, params)

    state = begin(network=network)
    for _ in range(2):
        state, _ = train.run(network, SGD, state, inputs, inputs, batch=4, gradient=record)
    jax.effects_barrier()
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert sorted(first) == sorted(second) == list(range(12))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("parts", [[1] * 9, [4, 5], [2, 6, 1]])
def test_a_run_in_parts_is_bit_identical_to_the_whole_across_epochs(parts):
    whole, _ = train.run(NETWORK, SGD, begin(), INPUTS, TARGETS, batch=8, steps=9)
    state = begin()
    for steps in parts:
        state, _ = train.run(NETWORK, SGD, state, INPUTS, TARGETS, batch=8, steps=steps)
    same(state, whole)


def test_manual_and_automatic_gradients_end_within_rounding():
    ends = [
        train.run(NETWORK, SGD, begin(), INPUTS, TARGETS, batch=8, steps=60, gradient=gradient)[0]
        for gradient in (backprop, train.automatic)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *(state.params for state in ends),
    )


def test_a_step_learns_and_counts():
    state, first = train.step(NETWORK, SGD, begin(), INPUTS.T, TARGETS.T)
    for _ in range(20):
        state, metrics = train.step(NETWORK, SGD, state, INPUTS.T, TARGETS.T)
    assert state.step == 21
    assert metrics.loss < first.loss


@pytest.mark.parametrize("hidden", [(8,), (8,) * 20])
def test_a_step_with_a_number_gone_bad_leaves_the_last_good_parameters(hidden):
    network = Network((4, *hidden, 3), "tanh", "softmax", "cross_entropy")
    state = begin(network=network)
    params = stack(state.params)
    state, before = state._replace(params=params), jax.tree.map(np.array, params)
    state, metrics = train.step(network, SGD, state, INPUTS.T.at[0, 0].set(jnp.nan), TARGETS.T)
    jax.tree.map(np.testing.assert_array_equal, state.params, before)
    assert metrics.bad_layer == network.depth  # where the backward pass meets it first
    assert state.step == 1


@pytest.mark.parametrize("observe", [None, lambda *_: jnp.zeros(())])
def test_after_it_no_step_is_taken_and_its_batch_can_be_told(observe):
    inputs = jnp.asarray(INPUTS).at[17].set(jnp.nan)
    ends = []
    for steps in (6, 12):  # an epoch has 6
        state, metrics = train.run(
            *(NETWORK, SGD, begin(), inputs, TARGETS), batch=8, steps=steps, observe=observe
        )
        ends.append(state)
    bad = int(np.flatnonzero(metrics.bad_layer)[0])
    same(ends[0]._replace(step=ends[1].step), ends[1])
    good, _ = train.run(NETWORK, SGD, begin(), inputs, TARGETS, batch=8, steps=max(bad, 1))
    assert 0 < bad < 6
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ends[0].params, good.params
    )
    assert 17 in np.array(train.examples_of(ends[0]._replace(step=jnp.array(bad)), 50, 8, 1))
    assert 17 not in np.array(train.examples_of(begin(), 50, 8, bad))


def test_the_bad_layer_is_named_by_its_number():
    network = Network((3, *[3] * 20, 2))
    gradients = jax.tree.map(jnp.zeros_like, stack(train.init(network, jax.random.key(0))))
    assert train.first_bad_layer(network, jnp.float32(1), gradients) == 0
    assert train.first_bad_layer(network, jnp.float32(jnp.inf), gradients) == network.depth + 1
    W = gradients[0].W.at[6, 0, 0].set(jnp.nan).at[2, 0, 0].set(jnp.nan)
    bad = (gradients[0]._replace(W=W), *gradients[1:])
    assert train.first_bad_layer(network, jnp.float32(1), bad) == 7


def test_the_compiled_run_grows_with_the_layers_not_with_their_square():
    """It did: each layer's update held the choice among all layers, and 256 layers took 24 GiB."""

    def instructions(depth):
        network = Network((4,) * (depth + 1), "tanh", "softmax", "cross_entropy")
        state = begin(network=network)
        program = train.run.lower(network, SGD, state, INPUTS, jnp.ones((50, 4)), batch=10)
        return len(program.compile().as_text().splitlines())

    few, more, most = (instructions(depth) for depth in (8, 16, 32))
    assert most - more < 2.2 * (more - few)


def test_evaluation_is_the_mean_over_all_examples():
    state = begin()
    cost, accuracy = train.evaluate(NETWORK, state.params, INPUTS, TARGETS, block=7)
    trace = train.forward(NETWORK, state.params, INPUTS.T)
    right = trace.activations[-1].argmax(0) == TARGETS.T.argmax(0)
    np.testing.assert_allclose(accuracy, right.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        cost, train.loss(NETWORK, state.params, INPUTS.T, TARGETS.T), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("batch", "targets", "message"),
    [
        (0, TARGETS, "batch is 0, expected 1 … 50"),
        (51, TARGETS, "batch is 51, expected 1 … 50"),
        (8, TARGETS[:9], "inputs have 50 rows, targets 9"),
    ],
)
def test_a_run_that_cannot_be_is_refused(batch, targets, message, untyped):
    with pytest.raises(ValueError, match=message):
        train.run(NETWORK, SGD, begin(), INPUTS, targets, batch=batch)


def test_an_adam_step_updates_the_weights_and_moments_in_place():
    """Of the compiled run: where old and new moments were both read, each was copied first."""
    network = Network((96, 96, 96), "relu", "softmax", "cross_entropy")
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(lambda: train.start(network, optimizer, jax.random.key(0)))
    rows = jax.ShapeDtypeStruct((64, 96), jnp.float32)
    lowered = train.run.lower(network, optimizer, state, rows, rows, batch=32, steps=2)
    assert "f32[96,96]" in lowered.compile().as_text()
    assert not re.search(r"= f32\[96,96\]\S* copy\(", lowered.compile().as_text())
