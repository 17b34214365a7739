"""Learning is another algorithm: gradients go to an optax optimizer.

A training run is a `State` and the function `run`, which scans jitted steps over data that stay on
the device. The order of the data is derived from the state's key and the epoch, so that a state is
all that is needed to go on.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

from jaxbackprop.backprop import backprop, backward
from jaxbackprop.forward import cost, forward, loss
from jaxbackprop.initialisation import init
from jaxbackprop.network import Network, Params
from jaxbackprop.refusals import (
    check_gradient,
    check_key,
    check_kind,
    check_optimizer,
    check_rows,
    check_whole,
)
from jaxbackprop.training.finite import first_bad_layer
from jaxbackprop.training.shuffle import permuted

# Legend: N examples in rows, p inputs, n outputs; a batch has m of them, in columns.

OBSERVED = (
    8  # observe looks at every 8th step: norms of the parameters cost as much as their update
)

Gradient = Callable[..., tuple[Float[Array, ""], Params]]
Observe = Callable[..., Any]


class State(NamedTuple):
    """Everything that a run needs to continue: `step` counts the updates made."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]
    key: PRNGKeyArray


class Metrics(NamedTuple):
    """Of each step: the batch's cost; and 0, or the layer whose gradient is not finite.

    The layer is the first one that the backward pass meets; L + 1 where the gradients are finite
    and only the cost is not. `watched` is what `watch` returned at each step; `seen` what `observe`
    did, at every 8th.
    """

    loss: Float[Array, " steps"]
    bad_layer: Int[Array, " steps"]
    watched: Any = None
    seen: Any = None


def start(
    network: Network,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    dtype: DTypeLike = jnp.float32,
    scheme: str | None = None,
) -> State:
    """The state before the first step."""
    check_optimizer(optimizer)
    check_key(key)
    init_key, order_key = jax.random.split(key)
    params = init(network, init_key, dtype, scheme)
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32), order_key)


def automatic(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> tuple[Float[Array, ""], Params]:
    """`backprop`'s twin through jax.value_and_grad, to compare with."""
    return jax.value_and_grad(loss, argnums=1)(network, params, x, y)


def update(
    network: Network,
    optimizer: optax.GradientTransformation,
    state: State,
    x: Float[Array, "p m"],
    y: Float[Array, "n m"],
    gradient: Gradient = backprop,
    watch: Observe | None = None,
    observe: Observe | None = None,
    taken: bool | Bool[Array, ""] = True,
) -> tuple[State, Metrics]:
    """One step. A step whose cost or gradients are not finite changes nothing but the count; nor
    does one that is not `taken`.

    `watch` and `observe`, called as observe(network, params, trace, backward, updates), look at a
    step by the four equations, as those of `jaxbackprop.flow` do; `gradient` is then not
    asked. They get the new params: to keep the old ones beside them would cost a copy.
    """
    _check_step(optimizer, state, gradient, watch, observe)
    if watch is None and observe is None:
        batch_loss, gradients = gradient(network, state.params, x, y)
        trace = errors = None
    else:
        trace = forward(network, state.params, x)
        errors = backward(network, state.params, trace, y)
        batch_loss, gradients = cost(network, trace, y), errors.gradients
    bad_layer = first_bad_layer(network, batch_loss, gradients)

    def move(params, opt_state):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, errors and updates

    def stay(params, opt_state):
        return params, opt_state, errors and jax.tree.map(jnp.zeros_like, params)

    # A branch, no choice number by number: that would read the old moments beside the new ones, and
    # XLA would copy all of them first.
    sound = taken & (bad_layer == 0)
    params, opt_state, updates = jax.lax.cond(sound, move, stay, state.params, state.opt_state)
    looks = (look and look(network, params, trace, errors, updates) for look in (watch, observe))
    metrics = Metrics(batch_loss, bad_layer, *looks)
    return state._replace(params=params, opt_state=opt_state, step=state.step + 1), metrics


step = jax.jit(
    update,
    static_argnames=("network", "optimizer", "gradient", "watch", "observe"),
    donate_argnames="state",
)


@functools.partial(
    jax.jit,
    static_argnames=("network", "optimizer", "batch", "steps", "gradient", "watch", "observe"),
    donate_argnames="state",
)
def run(
    network: Network,
    optimizer: optax.GradientTransformation,
    state: State,
    inputs: Float[Array, "N p"],
    targets: Float[Array, "N n"],
    *,
    batch: int,
    steps: int | None = None,
    gradient: Gradient = backprop,
    watch: Observe | None = None,
    observe: Observe | None = None,
) -> tuple[State, Metrics]:
    """`steps` updates, by default one epoch: N // batch of them, each example at most once.

    The order of epoch e is the `shuffle.permuted` of fold_in(key, e); the examples that do not fill
    the last batch rest in that epoch. The buffers of `state` are donated. After a step whose cost
    or gradients are not finite none is taken: the state keeps the parameters that it failed on, and
    `examples_of` tells its batch, so that `locate` can say which operation did it.

    `gradient`, `watch` and `observe` are as in `update`; `observe` looks at the first of every 8
    steps, `watch` at all of them.

    Raises ValueError where batch is not in 1 … N or inputs and targets do not pair.
    """
    check_rows(network, inputs, targets)
    _check_step(optimizer, state, gradient, watch, observe)
    examples = len(inputs)
    _check_batch(batch, examples)
    check_whole("steps", 1 if steps is None else steps)
    steps = examples // batch if steps is None else steps
    rows = examples_of(state, examples, batch, steps)

    def advance(carry, rows, observe=None):
        state, sound = carry
        x, y = (jnp.take(each, rows, axis=0, mode="clip").T for each in (inputs, targets))
        state, metrics = update(network, optimizer, state, x, y, gradient, watch, observe, sound)
        return (state, sound & (metrics.bad_layer == 0)), metrics

    begin = state, jnp.array(True)
    if observe is None:
        (state, _), metrics = jax.lax.scan(advance, begin, rows)
    else:
        looked_at = functools.partial(advance, observe=observe)
        (state, _), metrics = _scan_observed(advance, looked_at, begin, rows)
    return state, metrics


def _scan_observed(
    advance: Callable, looked_at: Callable, carry: Any, rows: Int[Array, "steps m"]
) -> tuple[Any, Metrics]:
    """The first of every 8 steps by `looked_at`, the others by `advance`.

    Two loops, one in the other: where a branch decided, the parameters would be copied for it.
    """

    def group(carry, rows):
        carry, first = looked_at(carry, rows[0])
        carry, others = jax.lax.scan(advance, carry, rows[1:])
        join = lambda one, many: jnp.concatenate([one[None], many])  # noqa: E731
        return carry, (jax.tree.map(join, first._replace(seen=None), others), first.seen)

    whole = len(rows) // OBSERVED * OBSERVED
    groups = rows[:whole].reshape(-1, OBSERVED, rows.shape[1])
    carry, parts = jax.lax.scan(group, carry, groups)
    metrics, seen = parts[0], parts[1]
    metrics = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), metrics)
    if whole < len(rows):
        carry, (rest, last) = group(carry, rows[whole:])
        metrics = jax.tree.map(lambda *parts: jnp.concatenate(parts), metrics, rest)
        seen = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), seen, last)
    return carry, metrics._replace(seen=seen)


def check_state(state: object) -> None:
    """Raise ValueError unless it is what `start` returns."""
    check_kind("state", state, State, "the State of train.start")


def _check_batch(batch: int, examples: int) -> None:
    check_whole("batch", batch, least=0)
    if not 1 <= batch <= examples:
        raise ValueError(f"batch is {batch}, expected 1 … {examples}, the number of examples")


def _check_step(
    optimizer: optax.GradientTransformation,
    state: State,
    gradient: object,
    watch: object,
    observe: object,
) -> None:
    check_optimizer(optimizer)
    check_state(state)
    check_gradient(gradient)
    for name, look in (("watch", watch), ("observe", observe)):
        if not (look is None or callable(look)):
            raise ValueError(f"{name} is {look!r}, expected a function such as flow.observe")
    own = jax.eval_shape(optimizer.init, state.params)
    if jax.tree.structure(own) != jax.tree.structure(state.opt_state):
        raise ValueError("state was made by train.start for another optimizer")


def examples_of(state: State, examples: int, batch: int, steps: int) -> Int[Array, "steps m"]:
    """Of so many examples those that are the batches of the next steps, as `run` takes them."""
    check_state(state)
    _check_batch(batch, examples)
    in_epoch, step = examples // batch, state.step + jnp.arange(steps)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(state.key, step // in_epoch)
    places = (step % in_epoch)[:, None] * batch + jnp.arange(batch)
    return jax.vmap(permuted, (0, 0, None))(keys, places, examples)


@functools.partial(jax.jit, static_argnames=("network", "block"))
def evaluate(
    network: Network,
    params: Params,
    inputs: Float[Array, "N p"],
    targets: Float[Array, "N n"],
    *,
    block: int = 1000,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(cost, accuracy) over a data set, a block of examples at a time.

    An example counts as right where its largest output is its largest target. Raises ValueError
    where inputs and targets do not pair or do not fit, there are none, or block is below 1.
    """
    costs, right = judge(network, params, inputs, targets, block)
    return jnp.mean(costs), jnp.mean(right.astype(costs.dtype))


def judge(
    network: Network,
    params: Params,
    inputs: Float[Array, "N p"],
    targets: Float[Array, "N n"],
    block: int = 1000,
) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
    """The cost of each example, and whether it is right. Raises ValueError as `evaluate` does."""
    check_rows(network, inputs, targets)
    check_whole("block", block)

    def one(example):
        x, y = example[0][:, None], example[1][:, None]
        trace = forward(network, params, x)
        right = jnp.argmax(trace.activations[-1]) == jnp.argmax(y)
        return cost(network, trace, y), right

    return jax.lax.map(one, (inputs, targets), batch_size=min(block, len(inputs)))
