"""What a watched value is called, and a flat dictionary of what was seen, for any logger."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbackprop.graph.lines import Line, innermost, stack
from jaxbackprop.graph.names import label as named
from jaxbackprop.graph.names import scope
from jaxbackprop.graph.watching.probes import norm_max
from jaxbackprop.graph.watching.sites import Site

STEPS_TOLD_APART = 64  # of a longer scan only the largest number is logged: no chart has more lines


class Label(NamedTuple):
    """A watched value: the operation that computes it, and where.

    operation: the primitive, or the name of a function with a rule of its own; "parameter" for a
    leaf of the arguments, whose scope is then its path. scope: of jax.named_scope, as flax linen
    sets it by itself. steps: the lengths of the scans around it, outermost first. parameter: the
    path of the first one that the operation reads, "model.layers[0].weight", or "": it is what
    tells the modules of flax nnx and equinox apart, which open no scopes.
    """

    operation: str
    line: Line | None
    scope: str
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    parameter: str = ""

    def __str__(self) -> str:
        if self.operation == "parameter":
            return self.scope
        place = self.scope or self.parameter
        return "/".join(filter(None, (place, f"{self.operation} {self.line or ''}".strip())))


class Seen(NamedTuple):
    """The statistics of a value and of its gradient, with an axis for each scan around it.

    gradient is None where the value depends on no differentiated argument. taken, None outside of
    branches, is False where the value was not computed, in a branch of a cond that was not taken:
    its statistics are then zeros.
    """

    value: Any
    gradient: Any
    taken: Any


def label(site: Site) -> Label:
    equations = [around.equation for around in site.place]
    return Label(
        operation(site.equation),
        innermost(stack(equations)),
        scope(equations),
        site.aval.shape,
        site.steps,
        site.parameter,
    )


def operation(equation: Any) -> str:
    name = equation.primitive.name
    if name in ("custom_jvp_call", "custom_vjp_call"):
        function = equation.params["call_jaxpr"]
        info = getattr(getattr(function, "jaxpr", function), "debug_info", None)
        return getattr(info, "func_name", None) or name
    return name


def scalars(labels: Sequence[Label], seen: Sequence[Seen]) -> dict[str, float]:
    """{"gradient norm/encoder/dot_general model.py:12": 0.3, …}, in Python's own numbers.

    Each step of a scan is a number of its own, ".../step 3"; of more than 64 steps the largest.
    What was not computed is left out. Raises ValueError where seen is not of one training step.
    """
    found: dict[str, float] = {}
    for name, (label, one) in zip(_unique(labels), zip(labels, seen, strict=True), strict=True):
        taken = np.full(label.steps, True) if one.taken is None else np.asarray(one.taken)
        for kind, statistics in (("value", one.value), ("gradient", one.gradient)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(statistics):
                array = np.asarray(leaf)
                if array.shape[: len(label.steps)] != label.steps:
                    raise ValueError(
                        f"{name} was seen with the shape {array.shape}, its scans have the steps "
                        f"{label.steps}: log one step of training at a time, "
                        "jax.tree.map(lambda each: each[-1], seen)"
                    )
                what = " ".join([kind, *(jax.tree_util.keystr((k,), simple=True) for k in path)])
                for step, number in _numbers(array, label.steps, taken):
                    found[f"{what}/{name}{step}"] = number
    return found


def _numbers(array: np.ndarray, steps: tuple[int, ...], taken: np.ndarray) -> Iterator:
    """(suffix, number) of each step that was computed, or of the largest of many."""
    if int(np.prod(steps)) > STEPS_TOLD_APART:
        computed = array[taken]
        if computed.size:
            yield "/largest step", float(np.max(np.abs(computed)))
        return
    for at in np.ndindex(array.shape):
        if taken[at[: len(steps)]]:
            yield ("/step " + "/".join(map(str, at)) if at else ""), float(array[at])


def _unique(labels: Sequence[Label]) -> Iterator[str]:
    """Their names. Where modules share a scope, as equinox's of a class do, or a scope and a line,
    the parameter tells them apart; what is left is told as the second one, #2."""
    modules = collections.defaultdict(set)
    for label in labels:
        modules[label.scope].add(label.parameter.rpartition(".")[0])
    alike = collections.Counter(map(str, labels))
    counts: collections.Counter[str] = collections.Counter()
    for label in labels:
        name = str(label)
        if label.parameter and (alike[name] > 1 or len(modules[label.scope]) > 1):
            name = str(label._replace(scope=""))
        counts[name] += 1
        yield name if counts[name] == 1 else f"{name} #{counts[name]}"


def update_ratios(updates: Any, params: Any) -> dict[str, Any]:
    """{"update/Dense_0.kernel": ‖ΔW‖ / ‖W‖, …} of each floating leaf, for optax's updates.

    About 1e-3 is usual; NaN where a leaf and its update are both 0. For use under jit.
    """
    found = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), strict=True)
    for (path, update), leaf in pairs:
        name = named("", path).removeprefix(".")
        found[f"update/{name}"] = norm_max(update).norm / norm_max(leaf).norm
    return found
