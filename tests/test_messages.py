"""What a person gets wrong is refused in one sentence that says what was meant."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxbackprop import (
    Network,
    backprop,
    backward,
    checkpoint,
    data,
    flow,
    forward,
    init,
    loss,
    memory,
    per_example,
    plots,
    processes,
    rows,
    saving,
    sharding,
    shuffle,
    stack,
    train,
    unstack,
)
from jaxbackprop.forward import cost

KEY = jax.random.key(0)
NETWORK = Network((4, 8, 3), "tanh", "softmax", "cross_entropy")
PARAMS = init(NETWORK, KEY)
X, Y = jnp.ones((4, 5)), jnp.ones((3, 5)) / 3
TRACE = forward(NETWORK, PARAMS, X)
DEEP = Network((4, *[4] * 20, 3))
SGD = optax.sgd(0.1)
STATE = train.start(NETWORK, SGD, KEY)


def seamed(seam):
    return backward(NETWORK, PARAMS, TRACE, Y, seam=seam)


def seamed_in_a_stack():
    params = stack(init(DEEP, KEY))
    backward(DEEP, params, forward(DEEP, params, X), Y, seam=lambda l, delta: None)


def run(*data, optimizer=SGD, state=None, batch=2, **options):
    state = state or train.start(NETWORK, SGD, KEY)
    return train.run(NETWORK, optimizer, state, *data, batch=batch, **options)


MISTAKES = {
    "sizes one by one": (
        lambda: Network(4, 8, 3),
        r"sizes is 4, expected all widths in one tuple: Network\(\(4, 8, 3\)\)",
    ),
    "no sizes": (lambda: Network(None), "sizes is None, expected all widths in one tuple"),
    "another's spelling": (lambda: Network((3, 1), "ReLU"), "did you mean 'relu'"),
    "words run together": (lambda: Network((3, 1), "LeakyReLU"), "did you mean 'leaky_relu'"),
    "a loss in capitals": (lambda: Network((3, 1), loss="SquaredError"), "'squared_error'"),
    "a function for a name": (
        lambda: Network((3, 1), jax.nn.relu),
        "hidden is the function relu, expected one of sigmoid",
    ),
    "sizes for a network": (lambda: init((4, 8, 3), KEY), r"network is tuple .*expected a Network"),
    "a seed for a key": (lambda: init(NETWORK, 0), r"key is 0, .*jax.random.key\(0\)"),
    "a scheme for a dtype": (
        lambda: init(NETWORK, KEY, "kaiming"),
        'dtype is kaiming: parameters are floating point; a scheme is named, as in scheme="he"',
    ),
    "params first": (lambda: forward(PARAMS, NETWORK, X), "network is tuple .*expected a Network"),
    "no params": (lambda: forward(NETWORK, None, X), "params are NoneType, expected a tuple"),
    "one layer for all": (lambda: forward(NETWORK, PARAMS[0], X), "expected a tuple of Layers"),
    "examples in rows": (
        lambda: forward(NETWORK, PARAMS, X.T),
        r"x has shape \(5, 4\), expected \(4, m\): examples are columns here, as in x.T",
    ),
    "targets in rows": (
        lambda: loss(NETWORK, PARAMS, X, Y.T),
        r"y has shape \(5, 3\), .*examples are columns here, as in y.T",
    ),
    "labels for targets": (
        lambda: backprop(NETWORK, PARAMS, X, jnp.zeros(5)),
        r"see data.one_hot\(labels, classes\).T",
    ),
    "a list of numbers": (lambda: forward(NETWORK, PARAMS, [[1.0]] * 4), "x is list"),
    "x for the trace": (lambda: backward(NETWORK, PARAMS, X, Y), "expected the Trace that forward"),
    "a seam of nothing": (
        lambda: seamed(lambda l, delta: None),
        r"seam returned NoneType for layer 2, expected δ of shape \(3, 5\), float32",
    ),
    "a seam of a number": (
        lambda: seamed(lambda l, delta: 0.0 if l == 1 else delta),
        r"seam returned float for layer 1, expected δ of shape \(8, 5\)",
    ),
    "a seam of another dtype": (
        lambda: seamed(lambda l, delta: delta.astype("bfloat16")),
        "seam returned bfloat16 for layer 2",
    ),
    "a number for a seam": (lambda: seamed(0.1), r"seam is 0.1, expected a function of \(l, delta"),
    "a seam of nothing in a stack": (seamed_in_a_stack, "seam returned NoneType for layer 21"),
    "one matrix for feedback": (
        lambda: backward(NETWORK, PARAMS, TRACE, Y, feedback=PARAMS[0].W),
        "expected one array for each entry of params",
    ),
    "a network to unstack": (lambda: unstack(NETWORK), "params are Network"),
    "nothing to stack": (lambda: stack(()), "params have no layers"),
    "what nobody observed": (lambda: flow.over_epoch(None, None), "observe=flow.observe"),
    "an optimizer not called": (
        lambda: train.start(NETWORK, optax.sgd, KEY),
        r"optimizer is sgd, expected one of optax's: call it, as in sgd\(1e-3\)",
    ),
    "columns to train on": (
        lambda: run(X, Y),
        r"inputs have shape \(4, 5\), expected \(N, 4\): examples are rows here, as in inputs.T",
    ),
    "columns of targets": (
        lambda: run(X.T, Y),
        r"targets have shape \(3, 5\), expected \(N, 3\): .*rows here, as in targets.T",
    ),
    "labels to train on": (lambda: run(X.T, jnp.zeros(5)), "see data.one_hot"),
    "rows that do not pair": (
        lambda: run(X.T, Y.T[:3]),
        "inputs have 5 rows, targets 3: each row is an example",
    ),
    "params for a state": (
        lambda: run(X.T, Y.T, state=PARAMS),
        "expected the State of train.start",
    ),
    "columns to evaluate": (
        lambda: train.evaluate(NETWORK, PARAMS, X, Y),
        "examples are rows here",
    ),
    "all of the digits": (lambda: data.digits(test_fraction=1), "expected one between 0 and 1"),
    "many keys": (
        lambda: init(NETWORK, jax.random.split(KEY)),
        r"key is of shape \(2,\), expected",
    ),
    "a seed to start from": (lambda: train.start(NETWORK, SGD, 0), r"key is 0, .*random.key\(0\)"),
    "a gradient's name": (
        lambda: run(X.T, Y.T, gradient="manual"),
        r"gradient is 'manual', expected a function of \(network, params, x, y\)",
    ),
    "a checkpoint for a gradient": (
        lambda: run(X.T, Y.T, gradient=checkpoint.every(2)),
        r"gradient is Every\(k=2\), expected .*functools.partial\(backprop, checkpoint=…\)",
    ),
    "another optimizer": (
        lambda: run(X.T, Y.T, optimizer=optax.adam(0.1)),
        "state was made by train.start for another optimizer",
    ),
    "a watch that is on": (lambda: run(X.T, Y.T, watch=True), "watch is True, expected a function"),
    "memory of no optimizer": (
        lambda: memory.need(NETWORK, optax.sgd, backprop, 8, 0),
        "optimizer is sgd, .*call it",
    ),
    "a batch in words": (
        lambda: checkpoint.plan(NETWORK, "32", "float32", bytes=2**20),
        "batch is '32', expected a whole number",
    ),
    "what was not gained": (
        lambda: flow.explain(NETWORK, None),
        "expected the Gains of flow.gains",
    ),
    "a pair for a split": (
        lambda: rows.divide(sharding.make_mesh(1), (X.T, Y.T), 3),
        r"split is tuple \[.*\], expected a data.Split",
    ),
    "x for a trace": (lambda: cost(NETWORK, X, Y), "trace is ArrayImpl .*Trace that forward"),
    "a seam of δ alone": (
        lambda: seamed(lambda delta: delta),
        r"seam cannot be called: too many positional arguments; .*function of \(l, delta\)",
    ),
    "errors that nobody computed": (
        lambda: flow.observe(NETWORK, PARAMS, TRACE, None, None),
        "errors is NoneType, expected what backward returns",
    ),
    "params to step from": (
        lambda: train.step(NETWORK, SGD, PARAMS, X, Y),
        "state is tuple .*, expected the State of train.start",
    ),
    "an optimizer to step with": (
        lambda: train.update(NETWORK, optax.adam(0.1), STATE, X, Y),
        "state was made by train.start for another optimizer",
    ),
    "half a block": (
        lambda: train.evaluate(NETWORK, PARAMS, X.T, Y.T, block=2.5),
        "block is 2.5, expected a whole number",
    ),
    "a batch of more than all": (
        lambda: train.examples_of(STATE, 5, 9, 1),
        "batch is 9, expected 1 … 5",
    ),
    "a share in words": (lambda: data.digits("0.2"), "test_fraction is '0.2', expected one"),
    "a key for a seed": (
        lambda: data.digits(0.2, KEY),
        "seed is PRNGKeyArray .*, expected a whole number",
    ),
    "no folder": (lambda: data.idx_folder(None), "folder is NoneType, expected a path"),
    "data for bytes of data": (
        lambda: memory.need(NETWORK, SGD, backprop, 8, X),
        r"data is ArrayImpl \(4, 5\), expected a whole number",
    ),
    "bytes for a need": (
        lambda: memory.fitting_checkpoint(NETWORK, 8, 1000, "1MiB"),
        "needed is int, expected the Need of memory.need",
    ),
    "places that are no places": (
        lambda: shuffle.permuted(KEY, jnp.arange(3.0), 3),
        "places are float32, expected whole numbers",
    ),
    "params to save": (
        lambda: saving.save("/nowhere", PARAMS, {}, {}),
        "state is tuple .*, expected one with a step",
    ),
    "arrays for a history": (
        lambda: saving.save("/nowhere", STATE, {}, {"loss": X}),
        "history is saved as JSON: Object of type ArrayImpl is not",
    ),
    "a place in words": (
        lambda: sharding.place(sharding.make_mesh(1), X, "data"),
        "spec is str, expected a PartitionSpec",
    ),
    "rows for an axis": (
        lambda: sharding.specs(sharding.make_mesh(1), PARAMS, "rows"),
        'axis is \'rows\', expected "data" or "model"',
    ),
    "a checkpoint for a plan": (
        lambda: sharding.volume(
            *(sharding.make_mesh(1), NETWORK, PARAMS, 8, sharding.data_parallel),
            checkpoint.every(2),
        ),
        "plan is Every, expected a Plan",
    ),
    "params of another network": (
        lambda: sharding.volume(
            sharding.make_mesh(1), Network((4, 3)), PARAMS, 8, sharding.data_parallel
        ),
        "params have 2 layers, the network has 1",
    ),
    "inputs to judge": (
        lambda: rows.evaluate(NETWORK, PARAMS, X),
        "rows is .*, expected those of rows.divide",
    ),
    "devices in words": (lambda: rows.share(6, "2"), "devices is '2', expected a whole number"),
    "a late meeting": (
        lambda: processes.join(None, 2, 1, devices=2, patience=0),
        "the processes meet before anything else is done with jax",
    ),
    "a state for params": (
        lambda: per_example.gradient_norms(NETWORK)(STATE, (X, Y)),
        r"params\[0\] is tuple",
    ),
    "inputs for an example": (
        lambda: per_example.plan(NETWORK)(PARAMS, X),
        r"the example of a network is \(x, y\)",
    ),
    "nothing to plan": (lambda: per_example.plan(None), "f is None, expected a Network or"),
    "no history to draw": (
        lambda: plots.learning_curve([1.0], "/nowhere"),
        "history is without epoch, loss, train_accuracy, test_accuracy",
    ),
    "nothing watched": (lambda: plots.watched([], "/nowhere"), "expected watch.scalars of each"),
    "no mesh to place on": (lambda: sharding.place(None, X), "mesh is None"),
    "no mesh": (
        lambda: sharding.data_parallel(None, NETWORK, PARAMS, X, Y),
        "mesh is NoneType, expected one as sharding.make_mesh returns it",
    ),
    "half a device": (lambda: sharding.make_mesh(0.5), "data is 0.5, expected a whole number"),
    "a method's name": (
        lambda: sharding.volume(sharding.make_mesh(1), NETWORK, PARAMS, 8, "fully_sharded"),
        "method is 'fully_sharded', expected data_parallel",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(mistake, untyped):
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
