"""One leaf of two gradients, and what is measured on it."""

import dataclasses
from collections.abc import Callable

import numpy as np


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
    undecided: tuple[str, ...] = ()  # whose slopes do not settle: neither right nor wrong
    kinks: tuple[tuple[str, float, float, float], ...] = ()  # place, value, one-sided slopes
    idle: bool = False  # f does not depend on it
    turned: bool = False  # held to f with decisions that float64 takes otherwise

    @property
    def found(self) -> np.ndarray:
        return self.measure(self.candidate)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.expected).all() and np.isfinite(self.candidate).all())

    @property
    def distance(self) -> float:
        """‖Δ‖."""
        return norm(self.gap) if self.finite else float("nan")

    @property
    def gap(self) -> np.ndarray:
        """Δ."""
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            return self.found - self.expected

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
    def times(self) -> float:
        """‖Δ‖ / bound: right up to 1."""
        if self.bound:
            return self.distance / self.bound
        return self.distance and self.distance * float("inf")

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
        return int(np.sum(~(np.abs(self.gap) <= share)))

    @property
    def worst(self) -> int:
        """Which of the compared numbers differs most."""
        return int(np.nan_to_num(np.abs(self.gap), nan=np.inf).argmax())

    def place(self, k: int) -> str:
        """The k-th compared number: `[0].W[2, 1]`."""
        if self.where:
            return self.name + self.where(k)
        index = ", ".join(map(str, np.unravel_index(k, self.shape)))
        return f"{self.name}[{index}]" if self.shape else self.name


def norm(values: np.ndarray) -> float:
    """‖values‖, not 0 where the squares underflow."""
    largest = float(np.abs(values).max(initial=0))
    return max(largest, float(np.linalg.norm(values)))
