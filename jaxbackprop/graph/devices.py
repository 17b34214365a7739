"""jax.shard_map: the body is cut into its halves on each device, and each half is mapped."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxbackprop.graph.dependence import dependence
from jaxbackprop.graph.eager import at_once
from jaxbackprop.graph.halves import Halves, asked_of, halves, pulled
from jaxbackprop.graph.structure import recorder


@recorder("shard_map", follows=lambda e, active: dependence(e.params["jaxpr"], active)[1])
@at_once
def shard_map(equation: Any, inputs: list, active: list[bool]) -> tuple[list, Callable]:
    """Each device walks its own part back, from what it kept of its own way ahead.

    Where jax does not check what varies (check_vma=False), an output that is the same on n devices
    has 1/n of its cotangent on each, and the contributions to an input that is the same on all of
    them are summed, as in jax.
    """
    params = equation.params
    in_specs, out_specs, checked = params["in_specs"], params["out_specs"], params["check_vma"]
    flags, out_flags = dependence(params["jaxpr"], active)
    parts = _halves_on_a_device(equation, flags, out_flags)
    kept_specs = [_stacked(equation, aval) for aval in parts.residuals]

    def ahead(inputs):
        outputs, residuals = parts.ahead(inputs)
        return outputs, [jnp.expand_dims(r, 0) for r in residuals]

    in_parts = (list(in_specs),)
    outputs, residuals = _mapped(equation, ahead, in_parts, (list(out_specs), kept_specs))(inputs)

    def pull(cts):
        asked = asked_of(cts, out_flags)
        ct_specs = [spec if a else None for spec, a in zip(out_specs, asked, strict=True)]
        wanted_specs = [spec for spec, flag in zip(in_specs, flags, strict=True) if flag]

        def back(inputs, residuals, cts):
            residuals = [lax.squeeze(r, [0]) for r in residuals]
            if not checked:
                cts = [
                    None if ct is None else ct / _copies(equation, spec)
                    for ct, spec in zip(cts, out_specs, strict=True)
                ]
            found = [
                jnp.zeros_like(x) if g is None else g
                for x, g, flag in zip(
                    inputs, pulled(parts, inputs, residuals, asked, cts), flags, strict=True
                )
                if flag
            ]
            if not checked:
                pairs = zip(found, wanted_specs, strict=True)
                found = [lax.psum(g, _unmentioned(equation, spec)) for g, spec in pairs]
            return found

        cts = [ct if a else None for ct, a in zip(cts, asked, strict=True)]
        specs = (list(in_specs), kept_specs, ct_specs)
        found = iter(_mapped(equation, back, specs, wanted_specs)(inputs, residuals, cts))
        return [next(found) if flag else None for flag in flags]

    return outputs, pull


def _mapped(equation: Any, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    params = equation.params
    return jax.shard_map(
        f,
        mesh=params["mesh"],
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=params["check_vma"],
        axis_names=set(params["newly_manual_axes"]),
    )


def _halves_on_a_device(equation: Any, flags: Sequence[bool], out_flags: Sequence[bool]) -> Halves:
    """The halves of the body, traced where its axes have their names."""
    made, specs = [], list(equation.params["in_specs"])

    def body(inputs):
        made.append(halves(equation.params["jaxpr"], flags, out_flags))
        return inputs

    jax.make_jaxpr(_mapped(equation, body, (specs,), specs))([v.aval for v in equation.invars])
    return made[0]


def _stacked(equation: Any, aval: Any) -> PartitionSpec:
    """How the devices' residuals are put together: along a new axis, one place a device on which
    they differ."""
    names = equation.params["newly_manual_axes"]
    varying = aval.mat.varying if equation.params["check_vma"] else names
    return PartitionSpec(tuple(sorted(varying & names)) or None)


def _unmentioned(equation: Any, spec: Any) -> tuple:
    """The axes along which a value with this spec is the same on all devices."""
    named = {name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))}
    return tuple(n for n in sorted(equation.params["newly_manual_axes"]) if n not in named)


def _copies(equation: Any, spec: Any) -> int:
    return math.prod(equation.params["mesh"].shape[name] for name in _unmentioned(equation, spec))
