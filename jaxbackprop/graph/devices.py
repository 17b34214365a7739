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
    in_specs, out_specs = list(equation.params["in_specs"]), list(equation.params["out_specs"])
    flags, out_flags = dependence(equation.params["jaxpr"], active)
    parts = _halves_on_a_device(equation, flags, out_flags)
    kept_specs = [_stacked(equation, aval) for aval in parts.residuals]

    def ahead(inputs):
        outputs, residuals = parts.ahead(inputs)
        return outputs, [jnp.expand_dims(r, 0) for r in residuals]

    outputs, residuals = _mapped(equation, ahead, (in_specs,), (out_specs, kept_specs))(inputs)

    def pull(cts):
        asked = asked_of(cts, out_flags)
        cts = [ct if a else None for ct, a in zip(cts, asked, strict=True)]
        ct_specs = [spec if a else None for spec, a in zip(out_specs, asked, strict=True)]
        wanted_specs = [spec if flag else None for spec, flag in zip(in_specs, flags, strict=True)]

        def back(inputs, residuals, cts):
            cts = [_share(equation, spec, ct) for spec, ct in zip(out_specs, cts, strict=True)]
            kept = [lax.squeeze(r, [0]) for r in residuals]
            found = pulled(parts, inputs, kept, asked, cts)
            return [
                _total(equation, spec, jnp.zeros_like(x) if g is None else g) if flag else None
                for spec, x, g, flag in zip(in_specs, inputs, found, flags, strict=True)
            ]

        specs = (in_specs, kept_specs, ct_specs)
        return _mapped(equation, back, specs, wanted_specs)(inputs, residuals, cts)

    return outputs, pull


def _share(equation: Any, spec: Any, ct: Any) -> Any:
    """A device's part of the cotangent of an output that is the same on several."""
    checked = equation.params["check_vma"]
    copies = math.prod(equation.params["mesh"].shape[name] for name in _unmentioned(equation, spec))
    return ct if ct is None or checked else ct / copies


def _total(equation: Any, spec: Any, ct: Any) -> Any:
    """The cotangent of an input that is the same on several devices, from those of each."""
    checked = equation.params["check_vma"]
    return ct if checked else lax.psum(ct, _unmentioned(equation, spec))


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
