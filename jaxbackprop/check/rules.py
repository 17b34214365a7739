"""Which custom rule is wrong: every custom_vjp and custom_jvp of a function, at its own values."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxbackprop.check.arguments import moving
from jaxbackprop.check.compare import Comparison
from jaxbackprop.check.contents import graphs_in
from jaxbackprop.check.gradients import check_gradients
from jaxbackprop.check.precision import wide
from jaxbackprop.check.progress import progress
from jaxbackprop.check.report import wrapped
from jaxbackprop.check.visiting import Given, Place, has_rule, visit_graph
from jaxbackprop.check.widened import evaluate_wide
from jaxbackprop.graph.arguments import check_function, only_arrays
from jaxbackprop.graph.lines import where
from jaxbackprop.graph.mutable import make_jaxpr
from jaxbackprop.graph.walk import evaluate, is_real

IN_FULL = 4  # uses of one rule that are checked number by number; the others along directions
STEPS = (1e-3, 2.5e-4)
DIRECTIONS = 3


@dataclasses.dataclass(frozen=True)
class Rule:
    """A function with a rule of its own, where it is called: how often, and what was found.

    `line` is where it is called, `defined` where its rule stands; `comparison` is the first wrong
    one, or the first; `why` says what kept it from being checked.
    """

    name: str
    kind: str
    line: str
    defined: str
    uses: int
    steps: tuple[int, ...]
    comparison: Comparison | None
    why: str = ""

    @property
    def ok(self) -> bool:
        return not self.why and (self.comparison is None or self.comparison.ok)

    def __str__(self) -> str:
        verdict = "ok " if self.ok else "BAD"
        times = f", {self.uses} times" if self.uses > 1 else ""
        text = f"{verdict} {self.name} ({self.kind}) at {self.line}{times}, rule at {self.defined}"
        if self.comparison is not None and not self.ok:
            step = f"scan step {', '.join(map(str, self.steps))}: " if self.steps else ""
            found = [finding.text for finding in self.comparison.findings]
            text += f": {step}{'; '.join(found) or 'nothing could be compared'}"
        return text + (f": {self.why}" if self.why else "")


@dataclasses.dataclass(frozen=True)
class Rules:
    """All rules in a function; `str` has a line for each."""

    rules: tuple[Rule, ...]

    @property
    def ok(self) -> bool:
        return all(rule.ok for rule in self.rules)

    def raise_if_failed(self) -> None:
        """Raises AssertionError with the report where a rule is wrong."""
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        wrong = sum(not rule.ok for rule in self.rules)
        last = f"FAILED: {wrong} of {len(self.rules)} rules" if wrong else None
        count = f"passed: {len(self.rules)} rules" if self.rules else "f has no custom rules"
        return wrapped([*map(str, self.rules), last or count])

    def __repr__(self) -> str:
        return str(self)


class Use(NamedTuple):
    """One evaluation of a function with a rule."""

    equation: Any
    inputs: list[Given]
    place: Place


def rules(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Rules]:
    """A function with f's arguments that checks every custom_vjp and custom_jvp inside f.

    Each is held against differences of its own function, at the values that it meets in this very
    call, at each step of a scan too, by those of its arguments that depend on args[argnums] (a
    rule owes no gradient to data). A function whose body is a Pallas kernel, interpreted, counts.

    Rules that are meant to differ from their function, such as a straight-through estimator or a
    clipped gradient, are reported: this is a check of derivatives. Raises ValueError where argnums
    does not fit, and whatever f raises.
    """

    check_function(f)

    def check(*args: Any) -> Rules:
        uses: dict[Any, list[Use]] = {}

        def visit(equation: Any, inputs: list[Given], place: Place) -> None:
            if any(given.active for given in inputs):
                uses.setdefault(equation, []).append(Use(equation, inputs, place))

        moves = moving(args, argnums)
        graph = make_jaxpr(lambda *leaves: only_arrays(f(*moves.rebuild(leaves))))(*moves.leaves)
        given = [Given(jnp.asarray(leaf), True) for leaf in moves.leaves]
        visit_graph(graph, given, visit, has_rule, Place())
        found = []
        with progress([_name(equation)[0] for equation in uses]) as done:
            for group in uses.values():
                found.append(_rule(group))
                done()
        return Rules(_together(found))

    return check


def _rule(group: list[Use]) -> Rule:
    """What the uses of one equation show: the doubtful ones are checked in full."""
    first = group[0]
    name, defined = _name(first.equation)
    kind = first.equation.primitive.name.removesuffix("_call")
    shown, comparison, why = first, None, ""
    try:
        doubtful = _doubtful(group)
        for use in [first, *doubtful][: IN_FULL + 1]:
            comparison, shown = _checked(use), use
            if not comparison.ok:
                break
    except Exception as error:
        why = f"not checked, {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    place = shown.place
    return Rule(
        name, kind, where(place.equations), defined, len(group), place.steps, comparison, why
    )


def _together(found: list[Rule]) -> tuple[Rule, ...]:
    """One line for what is called on the same line, the wrong one if any is."""
    lines: dict[tuple, Rule] = {}
    for rule in found:
        key = (rule.name, rule.defined, rule.line)
        known = lines.get(key)
        uses = rule.uses + (known.uses if known else 0)
        shown = rule if known is None or (known.ok and not rule.ok) else known
        lines[key] = dataclasses.replace(shown, uses=uses)
    return tuple(lines.values())


def _name(equation: Any) -> tuple[str, str]:
    """The function's name, and file:line of its rule (of itself, where a rule has none)."""
    own = _source(graphs_in(equation)[0].jaxpr)
    rule = _source(equation.params.get("bwd")) or own
    name = own.split(" at ")[0] or equation.primitive.name
    path, _, number = rule.rpartition(" at ")[2].rpartition(":")
    return name, f"{path.rpartition('/')[2]}:{number}" if path else "a line unknown"


def _source(of: Any) -> str:
    return str(getattr(getattr(of, "debug_info", None), "func_src_info", "") or "")


def scalar(use: Use, together: bool = False) -> tuple[Callable, dict]:
    """⟨c, outputs⟩ for random c, as a function of the active inputs by name.

    together: one value that is given twice is one input, under its first name.
    """
    given = use.equation.invars
    places = [given.index(v) if together else k for k, v in enumerate(given)]
    names = [f"argument {k - _constants(use)}" for k in places]
    moved = {
        name: jnp.asarray(given.array)
        for name, given in zip(names, use.inputs, strict=True)
        if given.active and is_real(given.array)
    }

    def of(values: dict) -> Any:
        pairs = zip(names, use.inputs, strict=True)
        outputs = evaluate(use.equation, [values.get(name, given.array) for name, given in pairs])
        return weighed(outputs)

    return of, moved


def _constants(use: Use) -> int:
    return use.equation.params.get("num_consts", 0)


def weighed(outputs: list) -> Any:
    """⟨c, outputs⟩ for random c, the same at each call."""
    draw, total = np.random.default_rng(0), 0.0
    for out in outputs:
        c = draw.uniform(0.5, 1.5, np.shape(out)) * draw.choice([-1.0, 1.0], np.shape(out))
        if is_real(out):
            total = total + jnp.sum(out * c.astype(out.dtype))
    return total


def _checked(use: Use) -> Comparison:
    """Where one value is given twice, the rule may give its whole gradient to either place, as that
    of `jax.lax.custom_root` does."""
    apart = check_gradients(*scalar(use))
    given = [v for v in use.equation.invars if not isinstance(v, Literal)]
    if apart.ok or len(set(given)) == len(given):
        return apart
    together = check_gradients(*scalar(use, together=True))
    return together if together.ok else apart


def _doubtful(group: list[Use]) -> list[Use]:
    """The uses whose slopes along a few directions are not the rule's: worst first."""
    if len(group) < 2:
        return []
    first = group[0]
    inputs = [jnp.asarray(given.array) for given in first.inputs]
    flags = [given.active and is_real(given.array) for given in first.inputs]
    kinds = [
        flag and jnp.issubdtype(x.dtype, jnp.floating)
        for flag, x in zip(flags, inputs, strict=True)
    ]
    closed = jax.make_jaxpr(lambda *xs: weighed(evaluate(first.equation, list(xs))))(*inputs)

    def with_rule(xs: list) -> list:
        def of(moved):
            own = iter(moved)
            return weighed(
                evaluate(
                    first.equation,
                    [next(own) if kind else x for x, kind in zip(xs, kinds, strict=True)],
                )
            )

        return jax.grad(of)([x for x, kind in zip(xs, kinds, strict=True) if kind])

    rule, along = jax.jit(with_rule), jax.jit(partial(_along, closed))
    errors = [_error(use, rule, along, kinds) for use in group]
    order = np.argsort(errors)[::-1]
    return [group[k] for k in order if errors[k] > 1][:IN_FULL]


def doubt(of: Callable, moved: dict, gradient: dict) -> float:
    """How far the gradient is from differences along a few directions, in what rounding may make:
    a quick look, operation by operation, that compiles nothing."""
    leaves, tree = jax.tree.flatten(moved)
    closed = make_jaxpr(lambda *leaves: of(jax.tree.unflatten(tree, leaves)))(*leaves)
    slopes = [np.asarray(g, np.float64) for g in jax.tree.leaves(gradient)]
    along = partial(_along, closed)
    return _farthest(leaves, slopes, [True] * len(leaves), along)


def _along(closed: Any, xs: list, own: list, us: list) -> tuple[Any, Any]:
    """The slope along us, extrapolated, and what one step more has changed."""
    found = []
    for h in STEPS:
        ahead, behind = (
            evaluate_wide(closed, _shifted(xs, sign * h, us), own)[0] for sign in (1, -1)
        )
        found.append((ahead - behind) / (2 * h))
    return (16 * found[1] - found[0]) / 15, jnp.abs(found[1] - found[0])


def _shifted(xs: list, h: float, us: list) -> list:
    return [x if u is None else x + h * u for x, u in zip(xs, us, strict=True)]


def _error(use: Use, rule: Callable, along: Callable, kinds: list[bool]) -> float:
    """The largest difference along a few directions, in what rounding may make."""
    own = [jnp.asarray(given.array) for given in use.inputs]
    gradients = iter(rule(own))
    slopes = [np.asarray(next(gradients), np.float64) if kind else np.zeros(()) for kind in kinds]
    return _farthest(own, slopes, kinds, along)


def _farthest(own: list, slopes: list, kinds: list[bool], along: Callable) -> float:
    draw, worst = np.random.default_rng(1), 0.0
    size = sum(float(np.linalg.norm(g)) for g in slopes)
    with jax.enable_x64(True):
        xs = [wide(x) for x in own]
        for _ in range(DIRECTIONS):
            us = [
                draw.choice([-1.0, 1.0], x.shape) / max(1.0, x.size) ** 0.5 if kind else None
                for x, kind in zip(own, kinds, strict=True)
            ]
            slope, rest = map(float, along(xs, own, us))
            by_rule = sum(
                float(np.sum(g * u)) for g, u in zip(slopes, us, strict=True) if u is not None
            )
            error = abs(by_rule - slope) / (1e-4 * (abs(slope) + size) + rest / 4 + 1e-12)
            worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst
