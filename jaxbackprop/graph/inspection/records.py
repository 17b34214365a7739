"""What the walk over an unfolded graph leaves behind, one record for each line of the graph."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import DropVar

from jaxbackprop.graph.inspection import report
from jaxbackprop.graph.inspection.local import local_gradients
from jaxbackprop.graph.inspection.statistics import Statistics, statistics, together
from jaxbackprop.graph.inspection.steps import (
    Graph,
    Place,
    Step,
    Unknown,
    Value,
    origin_of,
    without_alarms,
)
from jaxbackprop.graph.lines import Line, innermost, stack
from jaxbackprop.graph.names import MOVES, scope


class Path(NamedTuple):
    """One of the ways from a value to the result: the operation it leads through, the number of
    that operation's record (None where it has none), and what it contributes to the gradient."""

    through: int | None
    operation: str
    line: Line | None
    gradient: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Record:
    """One intermediate value of the function, or one array of its arguments.

    In a scan it is the value in every step: value and gradient have a leading axis, one entry a
    step. `gradient` is None where the result does not depend on the value smoothly, and elsewhere
    the sum of the `paths`; it is None, too, where it is `unknown`, behind an operation without a
    rule. `value` is None for the tangents that a custom_jvp rule computes with. `names` are the
    scope of the operation, and the paths of the parameters that it reads, the most telling one
    first. `occurrences` are the operations, one a step, each with the place among its outputs.
    """

    number: int
    operation: str
    line: Line | None
    stack: tuple[Line, ...]
    shape: tuple[int, ...]
    dtype: str
    steps: int | None
    value: np.ndarray | None
    gradient: np.ndarray | None
    paths: tuple[Path, ...]
    occurrences: tuple[tuple[Step, int], ...]
    names: tuple[str, ...] = ()
    unknown: Unknown | None = None

    @cached_property
    def value_statistics(self) -> Statistics | None:
        return None if self.value is None else statistics(self.value)

    @cached_property
    def gradient_statistics(self) -> Statistics | None:
        return None if self.gradient is None else statistics(self.gradient)

    def by_step(self) -> list[tuple[Statistics | None, Statistics | None]]:
        """The statistics of value and gradient in each step of the scan around them."""
        values, gradients = (
            [None] * (self.steps or 1)
            if array is None
            else [statistics(each) for each in (array if self.steps else [array])]
            for array in (self.value, self.gradient)
        )
        return list(zip(values, gradients, strict=True))

    @cached_property
    def local_gradients(self) -> tuple[np.ndarray | None, ...]:
        """∂value/∂operand for each operand, entry by entry, with a leading axis in a scan.

        None for operands without a gradient, and where the operation mixes entries, as a matrix
        product does: that Jacobian is no array of one number an entry. Empty for arguments.
        """
        with without_alarms():
            found = [local_gradients(step) for step, _ in self.occurrences]
        if self.steps is None:
            return found[0] if found else ()
        return tuple(
            None if any(g is None for g in gradients) else np.stack(gradients)
            for gradients in zip(*found, strict=True)
        )

    def __repr__(self) -> str:
        return report.detail(self)


Key = tuple
Contributions = dict[Value, list[tuple[Key, Step | None, Any]]]


def records(graph: Graph) -> tuple[Record, ...]:
    """Arguments first, then the operations in their order."""
    steps, inputs = graph.steps, graph.tape.jaxpr.invars
    groups: dict[Key, list[tuple[Step, int]]] = defaultdict(list)
    for step in steps:
        for k, v in enumerate(step.equation.outvars):
            if not step.place.hidden and not isinstance(v, DropVar):
                groups[(*_key(step.place), k)].append((step, k))
    numbers = {key: len(inputs) + i for i, key in enumerate(groups)}
    names = _names(groups, graph)
    contributions = _contributions(steps)
    (result,) = graph.tape.jaxpr.outvars
    if result.active:
        contributions[result].append((("result",), None, np.ones((), result.array.dtype)))

    found = [
        _argument(i, name, value, gradient, _paths([value], False, contributions, numbers))
        for i, (name, value, gradient) in enumerate(
            zip(graph.names, inputs, graph.gradients, strict=True)
        )
    ]
    for key, members in groups.items():
        values = [step.outvars[k] for step, k in members]
        scanned = len(members[0][0].place.steps) > 0
        paths = _paths(values, scanned, contributions, numbers)
        found.append(_record(numbers[key], members, scanned, paths, names[key]))
    return tuple(found)


def _parameters(graph: Graph) -> dict[Value, str]:
    """The values that are a parameter's own numbers, moved at most, by the parameter's path."""
    pairs = zip(graph.tape.jaxpr.invars, graph.names, strict=True)
    found = {v: name for v, name in pairs if not name.isidentifier()}
    for step in graph.steps:
        sliced = step.place.hidden and step.equation.primitive.name == "scan"
        if step.equation.primitive.name in MOVES or (sliced and len(step.invars) == 1):
            name = found.get(origin_of(step.invars[0]))
            if name is not None:
                found.update(dict.fromkeys(step.outvars, name))
    return found


def _names(groups: dict[Key, list], graph: Graph) -> dict[Key, tuple[str, ...]]:
    """Scope and parameters of each operation: the scope first, where it tells modules apart.

    Equinox's scopes are its classes: all that is in an `eqx.nn.Linear` goes by the parameter.
    """
    parameters = _parameters(graph)
    scopes, reads, modules = {}, {}, defaultdict(set)
    for key, members in groups.items():
        step, _ = members[0]
        scopes[key] = scope(step.place.equations)
        found = [parameters.get(origin_of(v)) for v in step.operands]
        reads[key] = [name for name in dict.fromkeys(found) if name]
        modules[scopes[key]] |= {name.rpartition(".")[0] for name in reads[key]}

    def ordered(key: Key) -> tuple[str, ...]:
        own = [scopes[key]] if scopes[key] else []
        together = len(modules[scopes[key]]) > 1
        return (*reads[key], *own) if together else (*own, *reads[key])

    return {key: ordered(key) for key in groups}


def _key(place: Place) -> Key:
    """The same for the same equation in every step of a scan."""
    return tuple(id(equation) for equation in place.equations)


def _contributions(steps: Sequence[Step]) -> Contributions:
    found = defaultdict(list)
    for step in steps:
        for i, (v, contribution) in enumerate(zip(step.invars, step.contributions, strict=False)):
            if contribution is not None and not isinstance(contribution, Unknown):
                # A scan stacks many values: together they are one way.
                of_scan = step.place.hidden and step.equation.primitive.name == "scan"
                key = (*_key(step.place), "scan" if of_scan else i)
                found[v].append((key, step, contribution))
    return found


def _paths(
    values: list[Value], scanned: bool, contributions: Contributions, numbers: dict[Key, int]
) -> tuple[Path, ...]:
    """The contributions to a value, those of the same equation together; stacked over the steps."""
    sums: dict[Key, dict[int, Any]] = defaultdict(dict)
    through: dict[Key, Step | None] = {}
    for n, value in enumerate(values):
        for key, step, contribution in contributions.get(value, ()):
            array = np.asarray(contribution)
            sums[key][n] = sums[key][n] + array if n in sums[key] else array
            through[key] = step
    found = []
    for key, by_step in sums.items():
        step, zero = through[key], np.zeros_like(next(iter(by_step.values())))
        each = [by_step.get(n, zero) for n in range(len(values))]
        number = None if step is None else numbers.get((*key[:-1], 0))
        line = None if step is None else innermost(stack(step.place.equations))
        label = "result" if step is None else operation(step)
        found.append(Path(number, label, line, together(each) if scanned else each[0]))
    return tuple(found)


def operation(step: Step) -> str:
    """The primitive; the name of a function with a rule of its own."""
    name = step.equation.primitive.name
    if name in ("custom_jvp_call", "custom_vjp_call"):
        function = step.equation.params["call_jaxpr"]
        info = getattr(getattr(function, "jaxpr", function), "debug_info", None)
        return getattr(info, "func_name", None) or name
    return name


def _argument(
    number: int, name: str, value: Value, gradient: Any, paths: tuple[Path, ...]
) -> Record:
    array, shape, dtype = _numbers(value.array), value.array.shape, str(value.array.dtype)
    unknown = gradient if isinstance(gradient, Unknown) else None
    known = None if gradient is None or unknown else np.asarray(gradient)
    names = (name,)
    return Record(
        number, name, None, (), shape, dtype, None, array, known, paths, (), names, unknown
    )


def _record(
    number: int,
    members: list[tuple[Step, int]],
    scanned: bool,
    paths: tuple[Path, ...],
    names: tuple[str, ...],
) -> Record:
    step, k = members[0]
    first = step.outvars[k]
    lines = stack(step.place.equations)
    values = [_numbers(s.outvars[k].array) for s, k in members]
    cts = [s.cts[k] if s.cts else None for s, k in members]
    unknown = next((ct for ct in cts if isinstance(ct, Unknown)), None)
    known = unknown is None and any(ct is not None for ct in cts)
    zero = np.zeros(first.array.shape, first.array.dtype) if known else None
    gradients = [zero if ct is None else np.asarray(ct) for ct in cts] if known else []

    def all_of(arrays: list) -> np.ndarray:
        return together(arrays) if scanned else arrays[0]

    return Record(
        number,
        operation(step),
        innermost(lines),
        lines,
        first.array.shape,
        str(first.array.dtype),
        len(members) if scanned else None,
        None if first.tangent or values[0] is None else all_of(values),
        all_of(gradients) if known else None,
        paths,
        tuple(members),
        names,
        unknown,
    )


def _numbers(array: Any) -> np.ndarray | None:
    """Random keys and mutable arrays have no numbers to show."""
    hidden = isinstance(array, jax.Ref) or jnp.issubdtype(array.dtype, jax.dtypes.extended)
    return None if hidden or array.dtype == jax.dtypes.float0 else np.asarray(array)
