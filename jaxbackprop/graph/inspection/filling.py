"""A loop whose step has a template, laid out: the template filled with the slices of each step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbackprop.graph.dependence import parts
from jaxbackprop.graph.inspection.compiled import Back, Form, Slot, Template, back_of
from jaxbackprop.graph.inspection.laying import inside
from jaxbackprop.graph.inspection.steps import Ends, Log, Place, Step, Unknown, Value
from jaxbackprop.graph.walk import Node, Tape, add, backward


class Filled:
    """The steps of a loop, in the order of time, with their values; the way back is one node."""

    def __init__(
        self, form: Form, template: Template, inputs: tuple, rows: list[list[Value]], at: Place
    ) -> None:
        self.form, self.at, self.length = form, at, len(rows)
        self.consts, carry, self.xs = inputs
        arrays = [[v.array for v in values] for values in inputs]
        self.carry, (carries, _, kept) = template.ahead(*arrays)
        self.carries = [_numbers(x) for x in carries]
        kept = [_numbers(x) for x in kept]
        self.order = list(range(self.length))[:: -1 if form.reverse else 1]
        self.given, self.outputs, self.steps, self._again = {}, {}, {}, {}
        for i in self.order:
            self.given[i] = [*self.consts, *carry, *rows[i]]
            slices = [x[i, ...] for x in kept]
            here = at._replace(steps=(*at.steps, i))
            self.steps[i], self.outputs[i] = _fill(template, self.given[i], slices, here)
            carry = self.outputs[i][: form.n_carry]
        self.end = carry

    def node(self) -> Node:
        first = self.form.n_consts + self.form.n_carry
        xs = (v for i in range(self.length) for v in self.given[i][first:])
        inputs = [*self.given[self.order[0]][:first], *xs]
        ys = (v for i in range(self.length) for v in self.outputs[i][self.form.n_carry :])
        outputs = [*self.end, *ys]
        arrays = [v.array for v in inputs], [v.array for v in outputs]
        step = Step(self.at, inputs, outputs, inputs)
        return Node(step, *arrays, [v.active for v in inputs], self.pull)

    def pull(self, cts: Sequence) -> list:
        """Back through all steps: as many at once as get cotangents of the same outputs."""
        n_consts, n_carry = self.form.n_consts, self.form.n_carry
        carry, rest = list(cts[:n_carry]), list(cts[n_carry:])
        width = len(rest) // self.length
        ys = [rest[i * width : (i + 1) * width] for i in range(self.length)]
        totals, of_xs = [None] * n_consts, {}
        todo = list(self.order)
        while todo:
            asked = _asked([*carry, *ys[todo[-1]]])
            unknown = any(isinstance(ct, Unknown) for ct in (*carry, *ys[todo[-1]]))
            back = None if unknown else back_of(self.form, asked)
            count, every = 1, back and back.all
            if every is not None:
                same = [_asked(ys[i]) == asked[n_carry:] for i in reversed(todo)]
                count = [*same, False].index(False)
            todo, now = todo[:-count], todo[-count:]
            if not any(asked):
                found = [None] * n_consts, carry, [[None] * len(self.xs)] * count
            elif back is None:
                found = self._by_itself(now[0], [*carry, *ys[now[0]]])
            elif every is None or count == 1:
                found = self._one(back, now[0], carry, ys[now[0]])
            else:
                found = self._many(every, back.seen, sorted(now), carry, ys)
            of_consts, carry, rows = found
            of_xs |= dict(zip(sorted(now), rows, strict=True))
            totals = [_sum(t, g) for t, g in zip(totals, of_consts, strict=True)]
        return [*totals, *carry, *(g for i in range(self.length) for g in of_xs[i])]

    def _many(
        self, back: Callable, seen: dict, places: list[int], carry: list, ys: list[list]
    ) -> tuple:
        own = slice(places[0], places[-1] + 1)
        carries, xs = [x[own] for x in self.carries], [v.array[own] for v in self.xs]
        columns = zip(*(ys[i] for i in places), strict=True)
        ct_ys = [None if c[0] is None else np.stack(list(map(np.asarray, c))) for c in columns]
        consts = [v.array for v in self.consts]
        (of_consts, carry, of_xs), arrays = back(
            np.array(places), consts, carries, xs, carry, ct_ys
        )
        of_xs, arrays = jax.tree.map(np.asarray, (of_xs, arrays))
        for k, i in enumerate(places):
            self._leave(i, seen, [x[k, ...] for x in arrays])
        rows = [[None if g is None else g[k, ...] for g in of_xs] for k in range(len(places))]
        return of_consts, carry, rows

    def _one(self, back: Back, i: int, carry: list, ys: list) -> tuple:
        inputs = [v.array for v in self.given[i]]
        split = parts(inputs, self.form.n_consts, self.form.n_carry)
        (of_consts, carry, of_x), arrays = back.one(*split, [*carry, *ys])
        self._leave(i, back.seen, arrays)
        return of_consts, carry, [of_x]

    def _by_itself(self, i: int, cts: list) -> tuple:
        """Operation by operation: where a gradient is unknown."""
        log, ends = self.again(i)
        numbers = {step: n for n, step in enumerate(log.steps)}

        def observe(node, cts, contributions):
            self._left(i, numbers[node.equation], cts, contributions)

        arrays, active = [v.array for v in ends.outvars], [v.active for v in ends.outvars]
        sent = backward(Tape(ends, log.nodes, arrays, active), cts, observe)
        of_consts, carry, of_x = parts(sent, self.form.n_consts, self.form.n_carry)
        return of_consts, carry, [of_x]

    def _leave(self, i: int, seen: dict, arrays: Sequence) -> None:
        """What the walk saw at the operations of step i."""
        for n, places in seen.items():
            self._left(i, n, *([None if k is None else arrays[k] for k in own] for own in places))

    def _left(self, i: int, n: int, cts: Sequence, contributions: Sequence) -> None:
        step = self.steps[i][n]
        step.cts, step.contributions = tuple(cts), tuple(contributions)
        step.back = functools.partial(self._pull_again, i, n)

    def _pull_again(self, i: int, n: int, cts: list) -> list:
        return self.again(i)[0].steps[n].back(cts)

    def again(self, i: int) -> tuple[Log, Ends]:
        """Step i laid out on its values."""
        if i not in self._again:
            log = Log([], [])
            inputs = [Value(_on_device(v.array), v.active, v.tangent) for v in self.given[i]]
            here = self.at._replace(steps=(*self.at.steps, i))
            self._again[i] = log, Ends(inputs, inside(log, self.form.body, inputs, here))
        return self._again[i]


def _fill(
    template: Template, given: list[Value], kept: list, at: Place
) -> tuple[list[Step], list[Value]]:
    """The steps and the outputs of the template, for these inputs and slices."""
    made = dict(zip(template.ends.invars, given, strict=True))

    def value(v: Value) -> Value:
        if v not in made:
            array = v.array
            if isinstance(array, Slot):
                array = given[array.number].array if array.given else kept[array.number]
            source = None if v.source is None else value(v.source)
            made[v] = Value(array, v.active, v.tangent, source)
        return made[v]

    def step(s: Step) -> Step:
        place = Place((*at.equations, *s.place.equations), at.steps, at.hidden or s.place.hidden)
        ends = ([value(v) for v in vs] for vs in (s.invars, s.outvars, s.operands))
        return Step(place, *ends, inside=[value(v) for v in s.inside])

    return [step(s) for s in template.steps], [value(v) for v in template.ends.outvars]


def _asked(cts: Sequence) -> tuple[bool, ...]:
    return tuple(ct is not None for ct in cts)


def _sum(total: Any, ct: Any) -> Any:
    return total if ct is None else ct if total is None else add(total, ct)


def _numbers(x: jax.Array) -> Any:
    """In NumPy, where a slice is no copy; random keys have no numbers."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.asarray(x)


def _on_device(x: Any) -> Any:
    return x if isinstance(x, jax.Array) or x.dtype == jax.dtypes.float0 else jnp.asarray(x)
