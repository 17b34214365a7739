"""What a report says beside its table: how the differences were taken, where kinks are."""

import numpy as np

from jaxbackprop.check import differences
from jaxbackprop.check.contents import made_of
from jaxbackprop.check.function import Flat
from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import eps
from jaxbackprop.check.probing import Measured, Probe, at_kinks, share, whole_size

SHOWN = 4  # of many alike
SPECTRAL = {"eigh", "eig", "svd", "schur"}


def notes(measured: Measured, leaves: list[Leaf]) -> tuple[str, str]:
    return _differences(measured.flat, leaves, measured.scatter), _taylor(measured, leaves)


def _differences(flat: Flat, leaves: list[Leaf], scatter: float) -> str:
    """How the differences were taken."""
    text = [f"differences: in {flat.dtype}, of f = {flat.cost:.6g} ± {scatter:.1g}", *flat.notes]
    text += [_turned(leaf) for leaf in leaves if leaf.turned]
    if coarse := [leaf.name for leaf in leaves if _is_coarse(leaf, flat.cost, scatter)]:
        text.append(f"known to no better than 10 %, for f has few digits: {', '.join(coarse)}")
    between = [kink for leaf in leaves for kink in leaf.kinks]
    text += [_kink(*kink) for kink in between[:SHOWN]]
    if len(between) > SHOWN:
        text.append(f"… and {len(between) - SHOWN} more kinks")
    if open_ := [name for leaf in leaves for name in leaf.undecided]:
        shown = ", ".join(open_[:SHOWN]) + (", …" if len(open_) > SHOWN else "")
        text.append(f"no slope that settles, {_cause(flat)}: {shown}")
    return "\n".join(text)


def _is_coarse(leaf: Leaf, cost: float, scatter: float) -> bool:
    """Is the bound wide because the values of f are coarse?"""
    return scatter > 1e-6 * abs(cost) and leaf.bound > 0.1 * float(np.linalg.norm(leaf.expected))


def _turned(leaf: Leaf) -> str:
    return (
        f"{leaf.name}: f decides otherwise in {leaf.dtype} than in float64, by rounding (a "
        "comparison, an integer): right for what it decides"
    )


def _kink(name: str, value: float, low: float, high: float) -> str:
    inside = low <= value <= high
    return (
        f"{name} is at a kink: {value:.6g} is {'between' if inside else 'outside'} "
        f"the one-sided slopes [{low:.6g}, {high:.6g}]"
    )


def _cause(flat: Flat) -> str:
    """Why slopes may not settle."""
    if flat.graph is not None and (made := made_of(flat.graph) & SPECTRAL):
        return (
            f"f takes {', '.join(sorted(made))}: where eigenvalues or singular values meet, "
            "vectors have no gradient"
        )
    return "f has a crossed kink or a jump there"


def _taylor(measured: Measured, leaves: list[Leaf]) -> str:
    """The rate of the Taylor remainder, along the discrepancy where there is one."""
    flat, probes, scatter = measured
    g = np.concatenate([np.zeros(0), *(np.ravel(leaf.candidate) for leaf in leaves)])
    if not np.isfinite(g).all() or not g.size:
        return "Taylor remainder: the gradient is not finite"
    wrong = [(probe, leaf) for probe, leaf in zip(probes, leaves, strict=True) if not leaf.ok]
    u = _discrepancy(wrong, g.size) if wrong else _anywhere(probes, g.size)
    u /= np.linalg.norm(u) or 1
    doubt = 4 * max(eps(leaf.dtype) for leaf in leaves) * float(np.linalg.norm(g))
    rate = differences.taylor_rate(flat, u, float(g @ u), scatter, doubt)
    if rate is None:
        return "Taylor remainder: no clean power of h (f linear along it, or kinks on the way)"
    along = "along the discrepancy" if wrong else "along a random direction"
    return f"Taylor remainder: h^{rate:.2f} {along} (2 where the gradient is right, 1 where wrong)"


def _discrepancy(wrong: list[tuple[Probe, Leaf]], n: int) -> np.ndarray:
    u = np.zeros(n)
    for probe, leaf in wrong:
        gap = np.nan_to_num(probe.along(leaf.candidate) - probe.slopes.value)
        for k in range(len(gap)):
            u += gap[k] * probe.rows(np.array([k]))[0]
    return u


def _anywhere(probes: list[Probe], n: int) -> np.ndarray:
    """A random direction, not across the kinks."""
    u, whole = np.random.default_rng(3).choice([-1.0, 1.0], n), whole_size(probes)
    for probe in probes:
        if probe.entries is not None:
            least = share(probe, whole)
            rough = at_kinks(probe, whole) | differences.unsettled(probe.slopes, least)
            u[probe.offset + probe.entries[rough]] = 0
    return u
