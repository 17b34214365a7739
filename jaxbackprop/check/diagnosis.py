"""What the pattern of an error says about the backward pass that made it."""

from collections.abc import Sequence

from jaxbackprop.check import factors, hypotheses
from jaxbackprop.check.fitting import Finding
from jaxbackprop.check.layers import listed, where
from jaxbackprop.check.leaf import Leaf

OF_ONE_LEAF = (
    hypotheses.kinked,
    hypotheses.zero,
    hypotheses.not_zero,
    hypotheses.summed,
    hypotheses.another,
    hypotheses.rearranged,
    factors.factor,
    hypotheses.offset,
    hypotheses.part,
)


def diagnose(leaves: Sequence[Leaf]) -> tuple[Finding, ...]:
    """What is known about the leaves that failed."""
    wrong = [leaf for leaf in leaves if not leaf.ok]
    if not_finite := [leaf for leaf in wrong if not leaf.finite]:
        return tuple(hypotheses.not_finite(leaf) for leaf in not_finite)
    if finding := factors.one_factor(wrong, leaves):
        return (finding,)
    named = [(leaf, _leaf(leaf, leaves)) for leaf in wrong]
    findings = _together([finding for _, finding in named if finding], leaves)
    if unexplained := [leaf for leaf, finding in named if finding is None]:
        findings.append(where(unexplained, wrong, leaves))
    return tuple(findings)


def _leaf(leaf: Leaf, leaves: Sequence[Leaf]) -> Finding | None:
    """The first hypothesis that explains this leaf alone."""
    found = (explain(leaf, leaves) for explain in OF_ONE_LEAF)
    return next(filter(None, found), None)


def _together(findings: list[Finding], leaves: Sequence[Leaf]) -> list[Finding]:
    """One sentence for what several leaves have in common."""
    unique = list(dict.fromkeys(findings))
    groups: dict[str, list[Finding]] = {}
    for finding in unique:
        groups.setdefault(finding.kind, []).append(finding)
    result = []
    for kind, group in groups.items():
        names = tuple(name for finding in group for name in finding.leaves)
        if kind == "missing" and len(group) > 1:
            text = f"{listed(names)} are zero: their gradients are missing"
            if names == tuple(leaf.name for leaf in leaves)[: len(names)]:
                text += (
                    f"; no error is passed back below {leaves[len(names)].name}"
                    if len(names) < len(leaves)
                    else ""
                )
            result.append(Finding(kind, names, text))
        elif kind == "transposed" and len(group) > 1:
            result.append(Finding(kind, names, f"{listed(names)} are transposed"))
        else:
            result += group
    return result
