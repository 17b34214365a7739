"""What people call a part of their model: scopes, and the paths of its parameters.

`encoder/dense_1` is a scope: flax linen opens one for each module, `jax.named_scope` opens one, and
`checkpoint_name` names a value inside it. `model.layers[1].weight` is the path of a parameter; for
equinox and flax nnx, which open no scopes, it is what tells one layer from the next.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

NAMING = "name"  # the primitive of jax.ad_checkpoint.checkpoint_name
# What only moves the numbers of a parameter about: its result still goes by the parameter's name.
MOVES = {
    *("reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "rev"),
    *("slice", "dynamic_slice", "split", "copy", "copy_p", "optimization_barrier", NAMING),
    "sharding_constraint",
}
TRANSFORMATIONS = ("jvp", "vmap", "transpose", "checkpoint", "rematted_computation")


class NothingMatches(KeyError, ValueError):
    """A name, a scope or a line that no operation has; says which are nearest."""

    def __init__(self, kind: str, asked: str, existing: Iterable[str]):
        self.message = f"no {kind} matches {asked!r}; {_nearest(asked, existing)}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


def scope(equations: Sequence[Any]) -> str:
    """The scope of the innermost of nested equations, which are given from the outside in.

    What a transformation adds, as in `jvp(…)` or `vmap(…)`, is left out.
    """
    parts = [part for e in equations for part in _parts(str(e.source_info.name_stack))]
    if equations and equations[-1].primitive.name == NAMING:
        parts.append(equations[-1].params["name"])
    return "/".join(parts)


def of_arguments(f: Callable, args: Sequence[Any]) -> list[str]:
    """What f calls its arguments, as far as it says."""
    try:
        bound = list(inspect.signature(f).bind_partial(*args).arguments)
    except (TypeError, ValueError):
        bound = []
    return bound[: len(args)] + [f"argument {i}" for i in range(len(bound), len(args))]


def label(name: str, path: Sequence[Any]) -> str:
    """layers[1].weight for the leaf model.layers[1].weight of the argument `model`, after its name.

    The keys of dictionaries are written as attributes are, and the array inside a flax variable
    goes by the variable's name.
    """
    keys = list(path)
    if (
        len(keys) > 1
        and isinstance(keys[-1], jax.tree_util.GetAttrKey)
        and keys[-1].name == "value"
    ):
        keys.pop()
    return name + "".join(
        f"[{key.idx}]"
        if isinstance(key, jax.tree_util.SequenceKey)
        else f".{jax.tree_util.keystr((key,), simple=True)}"
        for key in keys
    )


def within(asked: str, names: Iterable[str]) -> bool:
    """Does one of these names lie in the scope or at the path asked for, or in a part of it?

    `encoder/dense_1`, `layers[1]` and `layers.1.weight` match any name that has these parts in a
    row, and never a `dense_10`.
    """
    parts = _words(asked)
    return any(
        words[i : i + len(parts)] == parts
        for words in map(_words, names)
        for i in range(len(words) - len(parts) + 1)
    )


def _parts(stack: str) -> list[str]:
    """The scopes of a name stack, of which transformations are written around or between."""
    inner = re.sub(rf"\b(?:{'|'.join(TRANSFORMATIONS)})\(([^()]*)\)", r"\1", stack)
    if inner != stack:
        return _parts(inner)
    return [part for part in stack.split("/") if part not in ("", *TRANSFORMATIONS)]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[/.\[\]'\"]+", name) if word]


def _nearest(asked: str, existing: Iterable[str]) -> str:
    """The most alike, by the whole name or by one of its parts."""
    known = list(dict.fromkeys(existing))
    if not known:
        return "there is none in this function"

    def likeness(name: str) -> float:
        parts = {name, *re.split("[/.]", name), *_words(name)}
        return max(difflib.SequenceMatcher(None, asked.lower(), p.lower()).ratio() for p in parts)

    return f"the nearest are {', '.join(sorted(known, key=likeness, reverse=True)[:5])}"
