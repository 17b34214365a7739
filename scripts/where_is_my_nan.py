"""Which line made my gradient NaN? Three functions that look harmless.

    python scripts/where_is_my_nan.py

No model is changed to find out: `inspect(loss)(*arguments)` computes the gradient with everything
on the way, and `.origin()` is the operation that first turned finite numbers into NaN or Inf.
"""

import jax
import jax.numpy as jnp

from jaxbackprop import inspect


def masked(x):
    """The value is right, the gradient is NaN: 0 · ∞ in the branch that was not taken."""
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))


def repaired(x):
    """The mask stands before the root, too, so that no branch divides by zero."""
    positive = x > 0
    return jnp.sum(jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0))


@jax.jit
def recurrent(weights, inputs):
    """A jitted scan over padded inputs: the length of a state of zeros has no slope."""

    def step(state, x):
        state = jnp.tanh(weights @ state + x)
        return state, jnp.linalg.norm(state)

    _, lengths = jax.lax.scan(step, jnp.zeros(2), inputs)
    return jnp.mean(lengths)


def classifier(params, x, label):
    """softmax, then log: a probability that underflows to 0 has the logarithm -Inf."""
    hidden = jnp.tanh(params["hidden"] @ x)
    probabilities = jax.nn.softmax(params["output"] @ hidden)
    return -jnp.log(probabilities)[label]


def show(title: str, inspection) -> None:
    print(f"── {title}\n\n{inspection}\n\n{inspection.origin() or 'everything is finite'}\n")


def main() -> None:
    x = jnp.array([4.0, 0.0, 1.0])
    show("where(x > 0, sqrt(x), 0) at 0", inspect(masked)(x))
    show("the same, repaired", inspect(repaired)(x))

    weights = jnp.array([[0.5, 0.0], [0.0, 0.5]])
    inputs = jnp.array([[0.0, 0.0], [1.0, 0.5], [0.2, 0.1], [1.0, 1.0]])
    show("a jitted scan over padded inputs", inspect(recurrent)(weights, inputs))

    params = {"hidden": jnp.eye(2), "output": jnp.array([[90.0, 0.0], [-90.0, 0.0]])}
    show("log(softmax)", inspect(classifier)(params, jnp.array([1.0, 1.0]), 1))


if __name__ == "__main__":
    main()
