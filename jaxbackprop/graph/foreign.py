"""Who made a primitive: jax or this library, or another one that told jax its rules."""

import functools
from collections.abc import Iterator
from typing import Any

from jax.interpreters import ad

OWN = ("jax", "jaxlib", "jaxbackprop")  # for whose primitives the rules stand here
GUESTS = "jax.experimental.sparse"  # a library on top of jax, that comes with it


@functools.lru_cache(maxsize=4096)
def is_foreign(primitive: Any) -> bool:
    """Has it a rule, and was a part of what it does written outside of jax? (`ad.deflinear` and
    its like wrap a library's function in one of jax's.)"""
    rules = (ad.primitive_jvps.get(primitive), ad.primitive_transposes.get(primitive))
    if rules == (None, None):
        return False
    homes = _homes((*rules, primitive.impl))
    return any(home.partition(".")[0] not in OWN or home.startswith(GUESTS) for home in homes)


def _homes(function: Any) -> Iterator[str]:
    """The modules of a function, and of those that it is made of."""
    if isinstance(function, (tuple, list)):
        for part in function:
            yield from _homes(part)
    elif isinstance(function, functools.partial):
        yield from _homes((function.func, *function.args, *function.keywords.values()))
    elif callable(function) and getattr(function, "__module__", None):
        yield function.__module__
