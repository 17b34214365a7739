"""Which line made my gradient NaN, and what do I write instead?

    python scripts/where_is_my_nan.py model.py:loss --args "init(0)" "load_batch()" 1e-3
    python scripts/where_is_my_nan.py                      traps that look harmless
    python scripts/where_is_my_nan.py --only eigh while    only these

The function is called once, on values; it needs no change, and may be jitted. Each of --args is a
Python expression in the names of its own file, with jax, jnp and np beside them: a number, a call
that makes the parameters, jnp.load("params.npy"). Ends with 1 if anything is not finite, else 0.
The traps take ten seconds.
"""

import dataclasses
import difflib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
import tyro

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


def power_iteration(matrix):
    """A `while`, as many steps as it takes: the second product is 0, and has no direction."""

    def step(state):
        _, v = state
        w = matrix @ v
        return v, w / jnp.sqrt(jnp.sum(w * w) + 0.0)

    moves = lambda state: jnp.max(jnp.abs(state[0] - state[1])) > 1e-3  # noqa: E731
    _, v = jax.lax.while_loop(moves, step, (jnp.zeros(2), jnp.ones(2)))
    return v @ matrix @ v


def principal(points):
    """The main axis of points that spread alike in all directions: any axis is."""
    spread, axes = jnp.linalg.eigh(points.T @ points)
    return axes[:, -1] @ jnp.ones(2) + spread[-1]


def linen_model():
    """flax: a LayerNorm without an epsilon, on an example of padding."""
    from flax import linen

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(2):
                x = linen.Dense(4)(x)
                x = linen.LayerNorm(epsilon=0.0)(x)
            return x

    model, x = Model(), jnp.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    params = model.init(jax.random.key(0), x)
    return lambda params: jnp.sum(model.apply(params, x) ** 2), (params,)


def equinox_model():
    """equinox: attention from an example of which everything is masked."""
    import equinox

    model = equinox.nn.MLP(3, 3, 8, 2, key=jax.random.key(0))
    keep = jnp.array([[True, True, False], [False, False, False]])

    def loss(model, x):
        scores = jnp.where(keep, jax.vmap(model)(x), -jnp.inf)
        weights = jax.nn.softmax(scores)
        return jnp.sum(weights**2)

    return loss, (model, jnp.array([[1.0, 0.2, 0.0], [0.3, 0.0, -1.0]]))


PADDED = jnp.array([[0.0, 0.0], [1.0, 0.5], [0.2, 0.1], [1.0, 1.0]])
NILPOTENT = jnp.array([[0.0, 1.0], [0.0, 0.0]])
UNDERFLOW = {"hidden": jnp.eye(2), "output": jnp.array([[90.0, 0.0], [-90.0, 0.0]])}
GALLERY: dict[str, tuple[str, Callable[[], tuple[Callable, tuple]]]] = {
    "where": ("where(x > 0, sqrt(x), 0) at 0", lambda: (masked, (PADDED[0] + jnp.arange(2.0),))),
    "repaired": ("the same, repaired", lambda: (repaired, (PADDED[0] + jnp.arange(2.0),))),
    "scan": ("a jitted scan over padded inputs", lambda: (recurrent, (jnp.eye(2) / 2, PADDED))),
    "softmax": ("log(softmax)", lambda: (classifier, (UNDERFLOW, jnp.ones(2), 1))),
    "while": ("power iteration on a nilpotent matrix", lambda: (power_iteration, (NILPOTENT,))),
    "eigh": ("eigenvectors of equal eigenvalues", lambda: (principal, (jnp.eye(2),))),
    "flax": ("a LayerNorm without epsilon, flax linen", linen_model),
    "equinox": ("everything masked, equinox", equinox_model),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Which function, on what."""

    target: tyro.conf.Positional[str] = ""
    """file.py:function, a scalar function. Default: the traps of the gallery."""
    args: tuple[str, ...] = ()
    """Its arguments, each a Python expression in the names of that file."""
    argnums: tuple[int, ...] = (0,)
    """By which arguments to differentiate; all that is no real number passes through."""
    table: bool = False
    """Print the table of all values and gradients, too."""
    only: tuple[str, ...] = ()
    """Of the gallery, only these."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in GALLERY:
                raise ValueError(f"--only {name}: one of {', '.join(GALLERY)}")
        if self.target and ":" not in self.target:
            raise ValueError(f"{self.target!r} names no function: write file.py:function")
        if self.args and not self.target:
            raise ValueError("--args are the arguments of a function: write file.py:function first")


def load(target: str) -> tuple[Callable, dict[str, Any]]:
    """The function, and the names of its file. Raises ValueError where there is none."""
    file, _, name = target.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"there is no file {file!r}")
    sys.path.insert(0, str(Path(file).resolve().parent))  # for what it imports from beside it
    names = runpy.run_path(str(Path(file).resolve()), run_name="where_is_my_nan")
    if not callable(names.get(name)):
        known = [key for key, value in names.items() if callable(value) and key[0] != "_"]
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(f"{file} has no function {name!r}; the nearest are {', '.join(nearest)}")
    return names[name], names


def evaluate(expression: str, names: dict[str, Any]) -> Any:
    try:
        return eval(expression, {"jax": jax, "jnp": jnp, "np": np} | names)
    except Exception as error:
        message = f"--args {expression!r}: {type(error).__name__}: {error}"
        raise ValueError(message) from error


def looked_into(function: Callable, argnums: tuple[int, ...], arguments: list) -> Any:
    """Raises ValueError where the function cannot be called or differentiated so."""
    try:
        return inspect(function, argnums=argnums)(*arguments)
    except TypeError as error:
        raise ValueError(str(error)) from error


def show(title: str, inspection: Any, table: bool = True) -> bool:
    """Print what was found; is there anything?"""
    origin = inspection.origin()
    parts = [f"── {title}", *([str(inspection)] if table else []), str(origin or "all is finite")]
    print("\n\n".join(parts) + "\n")
    return origin is not None


def main(options: Options) -> bool:
    if options.target:
        function, names = load(options.target)
        arguments = [evaluate(expression, names) for expression in options.args]
        found = looked_into(function, options.argnums, arguments)
        return show(options.target, found, options.table)
    for name in options.only or GALLERY:
        title, trap = GALLERY[name]
        function, arguments = trap()
        show(title, inspect(function)(*arguments), options.table)
    return False


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
