"""What the backward pass looks like: how large things are, layer by layer, and where they vanish.

`train.run(watch=flow.active, observe=flow.observe)` gathers, inside the jitted epoch, which units
are active at each step, and norms at every 8th; `over_epoch` sums them up. `gains` splits the way
of δ from layer to layer into its two factors.
All norms are of the typical example, so that they do not depend on the size of the batch.

It reads what only a dense network's trace has: errors δ, slopes σ′(z), dead units. Of any other
function, and of the norms of values and gradients alone, `jaxbackprop.watch` tells.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxbackprop.activations import Activation
from jaxbackprop.backprop import Backward, backward
from jaxbackprop.forward import forward
from jaxbackprop.network import Network, Params, Trace
from jaxbackprop.refusals import check_is_trace, check_kind, check_network

# Legend: L layers, n neurons of a layer, p of the previous one, m examples; a stack adds an axis.

SATURATED = 0.04  # of the steepest σ′: |a − ½| > 0.49 for sigmoid, |a| > 0.98 for tanh


class Flow(NamedTuple):
    """One step seen layer by layer; `train.run` adds an axis of steps in front.

    weights: ‖∂C/∂Wˡ‖. errors: root mean square over the examples of ‖δˡᵢ‖. activations: the same of
    ‖aˡᵢ‖. updates: ‖ΔWˡ‖ / ‖Wˡ‖ of the optimizer's step and the new Wˡ, 0 below 1e-19. Of the
    hidden layers: saturated: the share of all units and examples with |σ′(z)| below 4 % of its
    greatest value; for relu those are the inactive ones.
    """

    weights: Float[Array, "*steps L"]
    errors: Float[Array, "*steps L"]
    activations: Float[Array, "*steps L"]
    updates: Float[Array, "*steps L"]
    saturated: Float[Array, "*steps hidden"]


def observe(
    network: Network, params: Params, trace: Trace, errors: Backward, updates: Params
) -> Flow:
    """A step from its residuals, errors, gradients and updates; no product is computed anew."""
    check_is_trace(trace)
    check_kind("errors", errors, Backward, "what backward returns")
    m = trace.activations[0].shape[1]
    slopes = _slopes(network, trace)
    scales = [_scale(delta) for delta in errors.deltas]  # so that the square of 1e-30 is not 0
    pairs = zip(errors.gradients, scales, strict=True)
    least = SATURATED * steepest(network.sigma(0))
    return Flow(
        _by_layer([_norm(layer.W, scale) for layer, scale in pairs]),
        _by_layer([_norm(*pair) for pair in zip(errors.deltas, scales, strict=True)]) / m**0.5,
        _by_layer([_norm(a) for a in trace.activations[1:]]) / m**0.5,
        _by_layer(
            [_norm(step.W) / _norm(layer.W) for step, layer in zip(updates, params, strict=True)]
        ),
        _by_layer([jnp.mean(jnp.abs(slope) < least, axis=(-2, -1)) for slope in slopes]),
    )


def active(
    network: Network, params: Params, trace: Trace, errors: Backward, updates: Params
) -> tuple[Bool[Array, "*_ n"], ...]:
    """The hidden units with σ′(z) ≠ 0 for some example, an array for each entry but the last."""
    check_is_trace(trace)
    return tuple(jnp.any(slope != 0, axis=-1) for slope in _slopes(network, trace))


def over_epoch(
    seen: Flow, watched: tuple[Bool[Array | np.ndarray, "steps *_ n"], ...]
) -> dict[str, Float[Array, " L"]]:
    """Means of the steps seen, by name; `dead` is the share of units that never were active."""
    if not isinstance(seen, Flow) or watched is None:
        raise ValueError("nothing was seen: train.run(watch=flow.active, observe=flow.observe)")
    means = {name: jnp.mean(getattr(seen, name), 0) for name in Flow._fields}
    ever = [jnp.any(units, axis=0) for units in watched]
    return means | {"dead": _by_layer([jnp.mean(~unit, axis=-1) for unit in ever])}


class Gains(NamedTuple):
    """‖δˡ‖ / ‖δˡ⁺¹‖ = weights · slopes, for l = 1 … L − 1.

    weights: ‖(Wˡ⁺¹)ᵀ δˡ⁺¹‖ / ‖δˡ⁺¹‖. slopes: ‖δˡ‖ / ‖(Wˡ⁺¹)ᵀ δˡ⁺¹‖, what ⊙ σ′(zˡ) leaves.
    """

    weights: Float[Array, " hidden"]
    slopes: Float[Array, " hidden"]


def gains(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> Gains:
    """The two factors of BP2 at each hidden layer. Raises as `backprop`."""
    deltas = backward(network, params, forward(network, params, x), y).deltas
    scales = [_scale(delta) for delta in deltas]
    delta = _by_layer([_norm(*pair) for pair in zip(deltas, scales, strict=True)])
    backs = [jnp.swapaxes(layer.W, -1, -2) @ d for layer, d in zip(params, deltas, strict=True)]
    carried = _by_layer([_norm(*pair) for pair in zip(backs, scales, strict=True)])
    return Gains(carried[1:] / delta[1:], delta[:-1] / carried[1:])


def explain(network: Network, found: Gains) -> str:
    """Where δ vanishes or explodes, in sentences: which layers halve or double it, and by what.

    Of the two factors the one that does more of it is named.
    """
    check_network(network)
    check_kind("found", found, Gains, "the Gains of flow.gains")
    best = steepest(network.sigma(0))
    pairs = list(zip(*map(_floats, found), strict=True))
    lines = []
    kinds = [_kind(weights, slopes, best) for weights, slopes in pairs]
    for kind, run in itertools.groupby(range(len(pairs)), kinds.__getitem__):
        layers = list(run)
        if kind:
            lines.append(_sentence(kind, layers, [pairs[k] for k in layers], best))
    ratios = [weights * slopes for weights, slopes in pairs]
    whole = math.prod(1.0 if math.isnan(ratio) else ratio for ratio in ratios)  # 0/0 is below a 0
    head = f"‖δ¹‖ / ‖δᴸ‖ = {whole:.2g} over {network.depth} layers"
    return "\n".join([head, *(lines or ["no layer halves or doubles the error"])])


def _kind(weights: float, slopes: float, best: float) -> str:
    """What happens at a layer, or "" where the error is neither halved nor doubled."""
    ratio = weights * slopes
    if not math.isfinite(ratio):
        return "lost"
    if ratio < 0.5 and slopes < weights:
        return "saturates" if slopes < best / 2 else "at its best"
    return "shrinks" if ratio < 0.5 else "grows" if ratio > 2 else ""


def _sentence(kind: str, layers: list[int], gains: list[tuple[float, float]], best: float) -> str:
    """One for a run of layers, counted from 0, at which the same happens."""
    by_weights = kind in ("shrinks", "grows")
    first, last = layers[0] + 1 + by_weights, layers[-1] + 1 + by_weights
    which = f"layer {first}" if first == last else f"layers {first} to {last}"
    passed = [pair[0 if by_weights else 1] for pair in gains]
    share = f"{min(passed):.2g}"
    if f"{max(passed):.2g}" != share:
        share += f" to {max(passed):.2g}"
    several = len(layers) > 1
    if kind == "lost":
        return f"{which}: no error arrives, or one that is not finite"
    if kind == "saturates":
        return f"{which} saturate{'' if several else 's'}: σ′ passes {share} of the error"
    if kind == "at its best":
        own = "are at their best" if several else "is at its best"
        return f"{which} {own}, with σ′ ≤ {best:.2g}: σ′ passes {share} of the error"
    does = "shrink it" if kind == "shrinks" else "make it grow"
    return f"the weights of {which} {does}: Wᵀ passes {share} of the error"


def steepest(sigma: Activation) -> float:
    """The greatest |σ′(z)|."""
    with jax.ensure_compile_time_eval():
        z = jnp.linspace(-8, 8, 3201)
        return float(jnp.max(jnp.abs(sigma.derivative(z, sigma.value(z)))))


def _slopes(network: Network, trace: Trace) -> list[Float[Array, "*_ n m"]]:
    """σ′(z) of each entry but the output."""
    sigma = network.sigma(0)
    pairs = zip(trace.zs[:-1], trace.activations[1:-1], strict=True)
    return [sigma.derivative(z, a) for z, a in pairs]


def _scale(array: Float[Array, "*_ n m"]) -> Float[Array, "*_ 1 1"]:
    """The greatest |entry|, or 1 where all are 0."""
    largest = jnp.max(jnp.abs(array), axis=(-2, -1), keepdims=True)
    return jnp.where(largest > 0, largest, 1)


def _norm(
    array: Float[Array, "*_ _ _"], scale: Float[Array, "*_ 1 1"] | float = 1.0
) -> Float[Array, "*_"]:
    """Of each matrix; the squares are those of array / scale."""
    scaled = jnp.sqrt(jnp.sum(jnp.square(array / scale), axis=(-2, -1)))
    return scaled * jnp.reshape(scale, jnp.shape(scale)[:-2])


def _by_layer(values: list[Float[Array, "*_"]]) -> Float[Array, " L"]:
    """One number a layer, from one or a stack of them an entry."""
    return jnp.concatenate([jnp.atleast_1d(value) for value in values]) if values else jnp.zeros(0)


def _floats(array: Float[Array, " hidden"]) -> list[float]:
    return [float(value) for value in array]
