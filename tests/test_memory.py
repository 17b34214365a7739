"""What a run needs is what the compiled run asks for; and what is refused would fit as it says."""

import functools

import jax
import optax
import pytest

from jaxbackprop import Network, backprop, checkpoint, memory, train

CASES = [
    (Network((784, 128, 10), "relu", "softmax", "cross_entropy"), optax.sgd(0.1), backprop, 128),
    (Network((64, 256, 256, 10), "tanh"), optax.adam(1e-3), backprop, 512),
    (Network((64, 256, 256, 10), "tanh"), optax.adam(1e-3), train.automatic, 512),
    (
        Network((64, *[64] * 40, 10), "tanh"),
        optax.adam(1e-3),
        functools.partial(backprop, checkpoint=checkpoint.every(6)),
        1024,
    ),
]


@pytest.mark.parametrize(("network", "optimizer", "gradient", "batch"), CASES)
def test_the_estimate_is_what_the_compiled_run_asks_for(network, optimizer, gradient, batch):
    """Within a quarter: the run may reuse a buffer, and has the order of the examples besides."""
    examples = 8 * batch
    inputs = jax.ShapeDtypeStruct((examples, network.sizes[0]), "float32")
    targets = jax.ShapeDtypeStruct((examples, network.sizes[-1]), "float32")
    state = jax.eval_shape(lambda: train.start(network, optimizer, jax.random.key(0)))
    program = train.run.lower(
        network, optimizer, state, inputs, targets, batch=batch, gradient=gradient
    ).compile()
    stats = program.memory_analysis()
    asked = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    data = 4 * examples * (network.sizes[0] + network.sizes[-1])
    needed = memory.need(network, optimizer, gradient, batch, data)
    assert needed.total == pytest.approx(asked, rel=0.25)
    assert needed.data == data


def test_the_parts_are_those_of_the_optimizer():
    network = Network((4, 5, 2))
    numbers = 4 * 5 + 5 + 5 * 2 + 2
    sgd, adam = (
        memory.need(network, optimizer, backprop, 3, 7)
        for optimizer in (optax.sgd(0.1), optax.adam(0.1))
    )
    assert sgd.parameters == adam.parameters == 4 * numbers
    assert sgd.optimizer == 0
    assert adam.optimizer == 2 * 4 * numbers + 4  # two moments, and a count
    assert "parameters 0.0" in str(adam)


def test_the_checkpoint_that_is_named_fits():
    network, batch = Network((64, *[64] * 40, 10), "tanh"), 1024
    optimizer = optax.sgd(0.1)
    whole = memory.need(network, optimizer, backprop, batch, 1000)
    limit = whole.total - whole.temporary // 2
    room = memory.fitting_checkpoint(network, batch, whole, limit)
    gradient = functools.partial(backprop, checkpoint=checkpoint.within(room))
    assert memory.need(network, optimizer, gradient, batch, 1000).total <= 1.02 * limit
    assert memory.fitting_checkpoint(network, batch, whole, whole.parameters) is None


def test_nothing_is_allocated():
    """A network of terabytes has a need."""
    network = Network((100_000, *[200_000] * 3, 10))
    needed = memory.need(network, optax.sgd(0.1), backprop, 1 << 20, 0)
    assert needed.total > 1e12
