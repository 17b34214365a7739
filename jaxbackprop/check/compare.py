"""Two gradients side by side, leaf by leaf: which differ, by how much, where, and why."""

import dataclasses
from typing import Any

import numpy as np

from jaxbackprop.check import report
from jaxbackprop.check.diagnosis import diagnose
from jaxbackprop.check.fitting import Finding
from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import check_form, eps


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found. `str` is a report of 80 columns; `ok` the verdict."""

    leaves: tuple[Leaf, ...]
    names: tuple[str, str]
    tolerance: str  # in words
    notes: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        """How many numbers were compared."""
        return sum(leaf.expected.size for leaf in self.leaves)

    @property
    def ok(self) -> bool:
        """Every leaf is within its bound, and at least one number was compared."""
        return self.compared > 0 and all(leaf.ok for leaf in self.leaves)

    @property
    def exit_status(self) -> int:
        """0 where ok, else 1: `sys.exit(comparison.exit_status)`."""
        return 0 if self.ok else 1

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the pattern of the error says, the most telling first."""
        return () if self.ok else diagnose(self.leaves)

    def raise_if_failed(self) -> None:
        """Raises AssertionError with the report where the verdict is not ok."""
        if not self.ok:
            raise AssertionError(f"\n{self}")

    def __str__(self) -> str:
        undecided = sum(len(leaf.undecided) for leaf in self.leaves)
        lines = [
            report.header(self.leaves, self.names, self.tolerance),
            *report.table(self.leaves),
            *report.worst(self.leaves, self.names),
            *self.notes,
            report.verdict(self.leaves, self.compared, undecided),
            *(finding.text for finding in self.findings),
        ]
        return report.wrapped(lines)


def compare(
    reference: Any,
    candidate: Any,
    *,
    names: tuple[str, str] = ("reference", "candidate"),
    depth: int = 4,
    tolerance: float | None = None,
) -> Comparison:
    """Are two gradients, pytrees of arrays of jax, NumPy or PyTorch, equal up to rounding?

    Each leaf: ‖candidate − reference‖ ≤ 8 eps (depth + 1) ‖reference‖, eps of its dtype and an
    exact zero for a reference of zero; or `tolerance` ‖reference‖. `depth` is the number of layers;
    4 is enough for what correct gradients of 31 layers were seen to differ by (11 eps).

    Raises ValueError, naming the leaf, where structures, shapes or dtypes differ or a leaf is not
    real floating point. Values that are not finite make the comparison fail, and are counted.
    """
    pairs = zip(*check_form(reference, candidate, names), strict=True)
    leaves = []
    for r, c in pairs:
        relative = 8 * eps(r.dtype) * (depth + 1) if tolerance is None else tolerance
        bound = relative * float(np.linalg.norm(r.values))
        leaves.append(Leaf(r.name, r.values.shape, r.dtype, np.ravel(r.values), c.values, bound))
    allowed = f"{8 * (depth + 1)} eps" if tolerance is None else f"{tolerance:.2g}"
    return Comparison(tuple(leaves), names, f"‖Δ‖ ≤ {allowed} ‖{names[0]}‖ in each leaf")
