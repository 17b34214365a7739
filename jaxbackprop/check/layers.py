"""Where an error that no simple mistake explains begins: gradients are made from the last leaf to
the first, so the first wrong layer on that way is the one to look at."""

from collections.abc import Sequence

import numpy as np

from jaxbackprop.check.fitting import Finding
from jaxbackprop.check.leaf import Leaf


def where(unexplained: Sequence[Leaf], wrong: Sequence[Leaf], leaves: Sequence[Leaf]) -> Finding:
    """Where the error begins: gradients are made from the last leaf to the first."""
    names = tuple(leaf.name for leaf in unexplained)
    bad = {leaf.name for leaf in wrong}
    telling = [leaf.name for leaf in leaves if leaf.name in bad or np.any(leaf.expected)]
    layers = list(dict.fromkeys(map(_layer, telling)))
    hit = [layer for layer in layers if any(_layer(name) == layer for name in bad)]
    clean = [layer for layer in layers if layer not in hit]
    kinds = {_field(name) for name in bad}
    others = {_field(name) for name in telling if _layer(name) in hit} - kinds
    if others and len(layers) > 1:
        text = (
            f"only {listed(names)} wrong, and {listed(sorted(others))} right: the error δ is "
            f"right, so look at how {listed(sorted(kinds))} is made from it (BP3 for weights, BP4 "
            "for biases: which activations, which examples)"
        )
        return Finding("one kind of leaf", names, text)
    if len(layers) > 1 and len(hit) == len(layers):
        text = (
            f"wrong from the last layer on ({layers[-1]}): look at the output error (BP1), the "
            "loss and its average over the examples"
        )
        return Finding("from the output", names, text)
    if clean and hit == layers[: len(hit)]:
        text = (
            f"right down to {layers[len(hit)]}, wrong from {hit[-1]} on: look at how the error is "
            f"passed from {layers[len(hit)]} to {hit[-1]} (BP2: the transpose, σ′ and its layer)"
        )
        return Finding("from a layer", names, text)
    return Finding("leaves", names, f"wrong: {listed(names)}; no simple pattern")


def listed(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 6 else [*names[:3], "…", names[-1]]
    return ", ".join(shown)


def _layer(name: str) -> str:
    """All of a path but its last step: `[0]` of `[0].W`."""
    cut = max(name.rfind("."), name.rfind("["))
    return name[:cut] if cut > 0 else name


def _field(name: str) -> str:
    """The last step of a path: `.W` of `[0].W`."""
    return name[len(_layer(name)) :] or name
