"""As many examples at a time as fit a stated number of bytes: the compiled program is asked."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxbackprop.checkpoint.descriptions import Within
from jaxbackprop.graph.budget import asked_bytes, compiled, one_at_a_time

Room = Within | str | None


def sized(
    of: Callable, count: Callable[[Any], int], microbatch: int | None, checkpoint: Room
) -> Callable[[Any, Any], Any]:
    """of(params, batch, microbatch) as a function of (params, batch), within the room for it."""
    room = asked_bytes(checkpoint)
    if room is None:

        def whole(params: Any, batch: Any) -> Any:
            return of(params, batch, microbatch)

        return whole

    def fitted(params: Any, batch: Any) -> Any:
        needed = functools.lru_cache(
            lambda size: temporary_bytes(functools.partial(of, microbatch=size), params, batch)
        )
        size = most_examples(needed, min(microbatch or count(batch), count(batch)), room)
        return of(*jax.tree.map(one_at_a_time, (params, batch)), size)

    return compiled(fitted)


def most_examples(needed: Callable[[int], int], most: int, room: int) -> int:
    """The greatest number of examples found, up to `most`, that needs no more than `room`.

    Bytes grow about evenly with the examples, so that few programs are tried: the number found may
    be a quarter too small.
    """
    if needed(most) <= room:
        return most
    if needed(1) > room:
        raise ValueError(
            f"one example at a time needs {needed(1)} bytes of temporary memory, and {room} are "
            "given: that is the least, since an example is not divided"
        )
    fits, over = 1, most
    while over - fits > max(1, fits // 4):
        share = (room - needed(fits)) / max(needed(over) - needed(fits), 1)
        size = min(max(fits + int(share * (over - fits)), fits + 1), over - 1)
        fits, over = (size, over) if needed(size) <= room else (fits, size)
    return fits


def temporary_bytes(f: Callable, *args: Any) -> int:
    """What the program of f needs beside its arguments and results; nothing is computed."""
    closed = jax.make_jaxpr(f)(*args)

    def program(consts: list, leaves: list) -> Any:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*leaves)

    given = [[jax.typeof(x) for x in values] for values in (closed.consts, jax.tree.leaves(args))]
    types = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype), given)
    analysis = jax.jit(program).lower(*types).compile().memory_analysis()
    return cast(Any, analysis).temp_size_in_bytes
