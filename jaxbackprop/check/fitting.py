"""How well a hypothesis about an error has to fit, and what is said of one that does."""

from typing import NamedTuple

import numpy as np

from jaxbackprop.check.leaf import Leaf
from jaxbackprop.check.leaves import eps

LOOSE = 1e-3  # how well a hypothesis must fit: better than chance, looser than a verdict


class Finding(NamedTuple):
    """One sentence, the leaves it is about, and its kind for programs."""

    kind: str
    leaves: tuple[str, ...]
    text: str


def fits(leaf: Leaf, candidate: np.ndarray) -> bool:
    """Is this the leaf's reference, as far as it was measured?"""
    size = np.linalg.norm(leaf.expected)
    return bool(
        leaf.expected.size > 1
        and size
        and np.linalg.norm(leaf.measure(candidate) - leaf.expected) <= loose(leaf) * size
    )


def undoes(leaf: Leaf, candidate: np.ndarray) -> bool:
    """Is this the leaf's reference, and the error of the leaf's own candidate explained by it?"""
    rest = np.linalg.norm(leaf.measure(candidate) - leaf.expected)
    return fits(leaf, candidate) and bool(rest <= 0.1 * leaf.distance)


def undoes_to(leaf: Leaf, made: np.ndarray) -> bool:
    """Is the candidate what a mistake makes of the reference?"""
    gap = float(np.linalg.norm(leaf.candidate - made))
    return gap <= loose(leaf) * float(np.linalg.norm(made)) and gap <= 0.1 * leaf.distance


def loose(leaf: Leaf) -> float:
    """How well a hypothesis must fit, relatively."""
    return max(LOOSE, 16 * eps(leaf.dtype))


def whole(leaf: Leaf) -> bool:
    """Every entry of the leaf was compared."""
    return leaf.where is None and leaf.expected.size == leaf.candidate.size
