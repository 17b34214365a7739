"""At a step that is not finite scripts/train.py ends, and says which operation it was."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop import locate, train
from jaxbackprop.network import Params
from train_parts.options import Options
from train_parts.task import Task


def stop_if_not_finite(
    options: Options, task: Task, state: train.State, metrics: train.Metrics
) -> None:
    """Exit with status 1, saying at which step, in which layer and by which operation a number went
    bad. After such a step the run has taken no other: its parameters are still there."""
    bad = np.flatnonzero(metrics.bad_layer)
    if bad.size:
        l, step = int(metrics.bad_layer[bad[0]]), int(state.step) - len(metrics.loss) + int(bad[0])
        where = f"the gradient of layer {l}" if l <= task.network.depth else "the loss"
        sys.exit(
            f"step {step + 1}: {where} is not finite. Try a smaller --learning-rate.\n"
            f"{cause(options, task, state._replace(step=jnp.asarray(step)))}"
        )


def cause(options: Options, task: Task, state: train.State) -> object:
    """The operation of the cost or gradient that is not finite at the state's step."""
    if options.num_processes > 1:
        return "Of one process, jaxbackprop.locate would say which operation did it."
    examples = task.examples
    (rows_,) = train.examples_of(state, examples.examples, options.batch, 1)
    batch = (np.asarray(each)[rows_].T for each in (examples.inputs, examples.targets))

    def finite(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        """0, or NaN; of the gradients as the run computes them, which are not differentiated."""
        computed = jax.lax.stop_gradient(task.gradient(task.network, params, x, y))
        return sum(jnp.sum(leaf * 0) for leaf in jax.tree.leaves(computed))

    found = locate(finite)(state.params, *batch)
    return found or "It is finite where the step is compiled by itself."
