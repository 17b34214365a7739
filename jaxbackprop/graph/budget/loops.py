"""Scans in a plan: the loop ahead and the loop back are two operations of the graph around them.

One value goes from one to the other: the *token*, of as many bytes as the chosen option keeps.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive

from jaxbackprop.graph.budget.costs import Choices
from jaxbackprop.graph.budget.joint import Joint, flatten
from jaxbackprop.graph.budget.options import Option, loops_in, options, paths
from jaxbackprop.graph.budget.report import step_kept, step_repeated
from jaxbackprop.graph.budget.running import run_ahead, run_back
from jaxbackprop.graph.budget.simulation import plain
from jaxbackprop.graph.dependence import asked_in_a_loop, dependence, lengths, open_jaxpr
from jaxbackprop.graph.halves import asked_of, joined
from jaxbackprop.graph.loop import following_outputs
from jaxbackprop.graph.structure import recorder


class Step(NamedTuple):
    """A step there and back: its graph, the constants of its text, and which of its inputs a
    gradient reaches: of the carry, those whose outputs are asked.

    The graph's inputs are those constants, the step's inputs, and the cotangents of the outputs
    asked; its outputs those of the step and the gradients.
    """

    joint: Joint
    closed: list
    flags: list[bool]


class Loop:
    """A scan and its options, from what costs least time to what needs least memory.

    Which outputs have a cotangent is known on the way back only, and decides what a step keeps
    (`ask`): zeros that nobody asked for are never formed, and a part without a way back is refused
    only where one is wanted.
    """

    def __init__(self, params: dict, active: Sequence[bool]) -> None:
        self.length, self.reverse = params["length"], params["reverse"]
        self.n_consts, self.n_carry = lengths(params)
        self.jaxpr, self.consts = open_jaxpr(params["jaxpr"])
        self.dependent = dependence(self.jaxpr, active, self.n_consts, self.n_carry)
        self.out_avals = [v.aval for v in self.jaxpr.outvars]
        self.out_flags = [False] * len(self.out_avals)

    def ask(self, asked: Sequence[bool]) -> None:
        """The outputs that get a cotangent, from outside or from the step behind."""
        flags, out_flags = self.dependent
        self.out_flags = list(asked)
        if self.out_flags != out_flags:
            counts = (self.n_consts, self.n_carry)
            self.out_flags = asked_in_a_loop(self.jaxpr, asked, flags, *counts)

    @functools.cached_property
    def step(self) -> Step:
        return _step(self, self.dependent[0], self.out_flags)

    @property
    def joint(self) -> Joint:
        return self.step.joint

    @property
    def closed(self) -> list:
        return self.step.closed

    @property
    def flags(self) -> list[bool]:
        return self.step.flags

    @functools.cached_property
    def options(self) -> list[Option]:
        return options(self)

    def ahead(self, option: Option, inputs: Sequence[Any]) -> list:
        return run_ahead(self, option, inputs)

    def back(self, option: Option, values: Sequence[Any]) -> list:
        n = len(self.flags)
        token, inputs, cts = values[0], values[1 : n + 1], list(values[n + 1 :])
        return run_back(self, option, token, inputs, cts)

    def kept(self, option: Option, line: Any) -> Iterator:
        """What is kept for the way back: lines and bytes."""
        if option.segment > 1:
            yield line, option.kept
        else:
            yield from step_kept(self.joint, option.ahead.choices, option.values, self.length)

    def repeated(self, option: Option) -> Iterator:
        """What the way back computes again: lines, bytes of a step, how often, nanoseconds."""
        yield from step_repeated(option.back, option.order, self.length)
        if option.segment > 1:
            everything = plain(option.ahead)
            yield from step_repeated(option.ahead, everything, self.length)

    def __repr__(self) -> str:
        return f"Loop({id(self)})"


@recorder("planned_scan", follows=following_outputs)
def planned_scan(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """The loop ahead and the loop back, as two operations of the graph around them."""
    loop = Loop(equation.params, active)
    *outputs, token = AHEAD.bind(*inputs, loop=loop, outs=tuple(v.aval for v in equation.outvars))

    def pull(cts):
        loop.ask(asked_of(cts, loop.dependent[1]))
        cts = [
            jnp.zeros_like(out) if ct is None else ct
            for ct, out, flag in zip(cts, outputs, loop.out_flags, strict=True)
            if flag
        ]
        wanted = [v.aval for v, flag in zip(equation.invars, loop.flags, strict=True) if flag]
        found = iter(BACK.bind(token, *inputs, *cts, loop=loop, outs=tuple(wanted)))
        found = [next(found) if flag else None for flag in loop.flags]
        return [g if a else None for g, a in zip(found, active, strict=True)]

    return outputs, pull


TOKEN = jax.typeof(np.int32(0))
AHEAD, BACK = Primitive("scan_ahead"), Primitive("scan_back")
AHEAD.multiple_results = BACK.multiple_results = True
AHEAD.def_abstract_eval(lambda *avals, loop, outs: [*outs, TOKEN])
BACK.def_abstract_eval(lambda *avals, loop, outs: list(outs))


def _step(loop: Loop, flags: list[bool], asked: list[bool]) -> Step:
    graph, reached = joined(loop.jaxpr, loop.consts, flags, asked)
    whole, consts = open_jaxpr(graph)
    joint = flatten(whole, sum(asked))
    carry = range(loop.n_consts, loop.n_consts + loop.n_carry)
    reached = [asked[i - loop.n_consts] if i in carry else there for i, there in enumerate(reached)]
    gradients = iter(joint.outputs[len(asked) :])
    found = [next(gradients) if flag else None for flag in flags]
    wanted = [g for g, there in zip(found, reached, strict=True) if there]
    outputs = [*joint.outputs[: len(asked)], *wanted]
    return Step(joint._replace(outputs=outputs), list(consts), reached)


def choices_of(joint: Joint, most: int) -> list[Choices]:
    """An option for each loop of a graph, with less and less memory."""
    return paths(loops_in(joint), most)
