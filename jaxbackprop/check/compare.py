"""Two gradients side by side, leaf by leaf: which differ, by how much, where, and why."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxbackprop.check import report
from jaxbackprop.check.diagnosis import Finding, diagnose
from jaxbackprop.check.leaves import check_form, eps


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of the two gradients.

    What is compared is `expected` with `measure(candidate)`: all entries, or the projections on a
    few directions of a leaf that is too large for them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    expected: np.ndarray  # float64, one axis
    candidate: np.ndarray  # float64, of the leaf's shape
    bound: float  # what ‖Δ‖ may be
    measure: Callable[[np.ndarray], np.ndarray] = np.ravel
    where: Callable[[int], str] | None = None  # the k-th compared number, in words
    undecided: tuple[str, ...] = ()  # the entries at a kink: neither right nor wrong

    @property
    def found(self) -> np.ndarray:
        return self.measure(self.candidate)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.expected).all() and np.isfinite(self.candidate).all())

    @property
    def distance(self) -> float:
        """‖Δ‖."""
        return float(np.linalg.norm(self.found - self.expected)) if self.finite else float("nan")

    @property
    def error(self) -> float:
        """‖Δ‖ / ‖expected‖: 0/0 is 0, anything else over 0 infinite."""
        size = float(np.linalg.norm(self.expected))
        if size and np.isfinite(size):
            return self.distance / size
        return self.distance and self.distance * float("inf")

    @property
    def ok(self) -> bool:
        return self.finite and self.distance <= self.bound

    @property
    def ratio(self) -> float:
        """‖candidate‖ / ‖expected‖."""
        size = float(np.linalg.norm(self.expected))
        return float(np.linalg.norm(self.found)) / size if size else float("nan")

    @property
    def cosine(self) -> float:
        sizes = float(np.linalg.norm(self.expected)) * float(np.linalg.norm(self.found))
        return float(np.dot(self.expected, self.found)) / sizes if sizes else float("nan")

    @property
    def bad(self) -> int:
        """How many entries differ by more than their share of the bound."""
        if self.ok or not self.expected.size:
            return 0
        share = self.bound / np.sqrt(self.expected.size)
        return int(np.sum(~(np.abs(self.found - self.expected) <= share)))

    @property
    def worst(self) -> int:
        """Which of the compared numbers differs most."""
        return int(np.nan_to_num(np.abs(self.found - self.expected), nan=np.inf).argmax())

    def place(self, k: int) -> str:
        """The k-th compared number: `[0].W[2, 1]`."""
        if self.where:
            return self.name + self.where(k)
        index = ", ".join(map(str, np.unravel_index(k, self.shape)))
        return f"{self.name}[{index}]" if self.shape else self.name


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
        return report.text(self)


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
