"""The gradients gᵢ of each example of a batch: what is asked of them, mostly without forming one.

Each function takes f and returns a function of (params, batch). f(params, example) is a scalar
function of one example, and every leaf of the batch has a first axis of m examples; gᵢ is the
gradient of f at the i-th example, what jax.vmap(jax.grad(f), (None, 0))(params, batch) gives. Or f
is a `Network`, with the cost of one example for f, and the batch (x, y), whose columns are the
examples.

Nothing carries a 1/m that its definition does not name. With `microbatch` so many examples are in
work at a time, in a scan: as many fewer bytes, the same numbers. With `checkpoint=within(bytes)` as
many as fit, and at most `microbatch`. All of them raise ValueError for a batch whose leaves differ
in m or that has no examples, where one example at a time needs more bytes, and what `grad` raises
for an f that is not a real scalar and for parameters that are not real.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxbackprop.graph import unformed
from jaxbackprop.graph.unformed import Leaf
from jaxbackprop.per_example.asking import Cost, answered, ask, like, means, number
from jaxbackprop.per_example.bounds import checked, coefficients
from jaxbackprop.per_example.fitting import Room


def gradient_norms(
    f: Cost, *, microbatch: int | None = None, checkpoint: Room = None
) -> Callable[..., Float[Array, " m"]]:
    """‖gᵢ‖ of each example over all parameters; as it is where it is not finite.

    ‖δ aᵀ‖ = ‖δ‖ ‖a‖ (I. Goodfellow, *Efficient per-example gradient computations*, 2015), and of a
    sum of products the inner products of all pairs.
    """

    def of(params, batch, microbatch):
        squares = jax.tree.leaves(squared_norms(f, microbatch=microbatch)(params, batch))
        return jnp.sqrt(sum(squares)).astype(jnp.result_type(*jax.tree.leaves(params)))

    return answered(f, of, microbatch, checkpoint)


def squared_norms(
    f: Cost, *, microbatch: int | None = None, checkpoint: Room = None
) -> Callable[..., PyTree[Float[Array, " m"]]]:
    """‖gᵢ‖² of each example and leaf: a tree like params, in float32 at least."""

    def of(params, batch, microbatch):
        _, squares = ask(f, params, batch, microbatch, lambda leaves: ((), _squares(leaves)))
        return jax.tree.unflatten(jax.tree.structure(params), squares)

    return answered(f, of, microbatch, checkpoint)


def gradients(
    f: Cost, *, microbatch: int | None = None, checkpoint: Room = None
) -> Callable[..., PyTree[Array]]:
    """gᵢ of each example, shaped as params with a first axis of m.

    m times the memory of the parameters, in microbatches too: the others need none of it.
    """

    def of(params, batch, microbatch):
        def form(leaves):
            return (), list(map(unformed.formed_each, leaves))

        _, formed = ask(f, params, batch, microbatch, form)
        return jax.tree.unflatten(jax.tree.structure(params), formed)

    return answered(f, of, microbatch, checkpoint)


class Clipped(NamedTuple):
    """A clipped mean; of how many examples the gradient was shortened, and was left out as bad."""

    mean: PyTree[Array]
    clipped: Int[Array, ""]
    bad: Int[Array, ""]


def clipped_mean(
    f: Cost,
    max_norm: PyTree,
    *,
    microbatch: int | None = None,
    checkpoint: Room = None,
    counts: bool = False,
) -> Callable[..., Any]:
    """(1/m) Σᵢ cᵢ gᵢ with cᵢ = min(1, max_norm / ‖gᵢ‖), shaped as params.

    The clipped gradient of differentially private training (M. Abadi et al., *Deep learning with
    differential privacy*, 2016), as a mean: the noise that goes with it has a standard deviation of
    σ max_norm / m. One forward and one backward pass: the coefficients come from the norms, and the
    mean from the same factors (Z. Bu et al., *Differentially private optimization on large model at
    small cost*, 2023).

    max_norm is one bound, or a tree of them by leaf or prefix of params; each then bounds the norm
    of what stands under it. An example is *bad* whose ‖gᵢ‖ is not finite: its cᵢ is 0, it stays
    among the m, and with `counts` the result is a `Clipped`, which counts it.

    Raises ValueError for a max_norm that is no prefix of params, or of which a bound is not a
    positive number; where such a bound is traced, so that its value is not known yet, the result is
    NaN.
    """

    def of(params, batch, microbatch):
        bounds, tree = checked(max_norm, params), jax.tree.structure(params)

        def clip(leaves):
            leaves = list(map(unformed.formed_once, leaves))
            shares, bad = coefficients(bounds, tree.unflatten(_squares(leaves)))
            clipped = jnp.any(jnp.stack(shares) < 1, 0) & ~bad
            return (list(map(unformed.total, leaves, shares)), clipped.sum(), bad.sum()), ()

        (sums, clipped, bad), _ = ask(f, params, batch, microbatch, clip)
        mean = means(sums, params, number(f, batch))
        return Clipped(mean, clipped, bad) if counts else mean

    return answered(f, of, microbatch, checkpoint)


def weighted_mean(
    f: Cost,
    weights: Float[Array | np.ndarray, " m"],
    *,
    microbatch: int | None = None,
    checkpoint: Room = None,
) -> Callable[..., PyTree[Array]]:
    """(1/m) Σᵢ wᵢ gᵢ, shaped as params: divided by m, not by the sum of the weights.

    A weight of zero leaves an example out, even one whose gradient is not finite. Raises ValueError
    unless there is one weight an example.
    """

    def of(params, batch, microbatch):
        m = number(f, batch)
        if jnp.shape(weights) != (m,):
            raise ValueError(
                f"weights has the shape {jnp.shape(weights)}, expected one weight for each of the "
                f"{m} examples"
            )
        if jnp.iscomplexobj(weights):
            raise ValueError(f"weights is {jnp.result_type(weights)}, expected real numbers")

        def weigh(leaves, weights):
            return [unformed.total(leaf, weights) for leaf in leaves], ()

        sums, _ = ask(f, params, batch, microbatch, weigh, jnp.asarray(weights))
        return means(sums, params, m)

    return answered(f, of, microbatch, checkpoint)


def second_moment(
    f: Cost, *, microbatch: int | None = None, checkpoint: Room = None
) -> Callable[..., PyTree[Array]]:
    """(1/m) Σᵢ gᵢ² of each number, shaped as params.

    (δ aᵀ)² = δ² (a²)ᵀ number by number, so that of one product it is a product of squares
    (F. Dangel, F. Kunstner and P. Hennig, *BackPACK: packing more into backprop*, 2020). Sums of
    products are formed, a few examples at a time.
    """

    def of(params, batch, microbatch):
        def square(leaves):
            return list(map(unformed.total_squares, leaves)), ()

        sums, _ = ask(f, params, batch, microbatch, square)
        return means(sums, params, number(f, batch))

    return answered(f, of, microbatch, checkpoint)


def variance(
    f: Cost, *, microbatch: int | None = None, checkpoint: Room = None
) -> Callable[..., PyTree[Array]]:
    """(1/m) Σᵢ (gᵢ − g)² of each number, g the mean, shaped as params; of one example 0.

    Times m / (m − 1) it is unbiased. Computed as the second moment less the squared mean: where the
    variance is far below the square of the mean, rounding of the latter is what remains.
    """

    def of(params, batch, microbatch):
        def both(leaves):
            squares = list(map(unformed.total_squares, leaves))
            return (squares, list(map(unformed.total, leaves))), ()

        (squares, sums), _ = ask(f, params, batch, microbatch, both)
        m = number(f, batch)
        if m == 1:
            return like(params, list(map(jnp.zeros_like, sums)))
        pairs = zip(squares, sums, strict=True)
        return like(params, [jnp.maximum(s / m - jnp.square(g / m), 0) for s, g in pairs])

    return answered(f, of, microbatch, checkpoint)


class NoiseScale(NamedTuple):
    """`scale` = `noise` / `signal`, in examples: tr Σ and ‖G‖², both without bias.

    Over few examples the signal can come out negative, and the ratio says nothing: average both
    over some batches, then divide.
    """

    scale: Float[Array, ""]
    noise: Float[Array, ""]
    signal: Float[Array, ""]


def gradient_noise_scale(
    f: Cost, *, microbatch: int | None = None, checkpoint: Room = None
) -> Callable[..., NoiseScale]:
    """How many examples a batch needs for its gradient to stand out from its noise: tr Σ / ‖G‖².

    G is the true gradient, Σ the covariance of the gᵢ (S. McCandlish et al., *An empirical model of
    large-batch training*, 2018). Estimated from E‖gᵢ‖² = ‖G‖² + tr Σ and E‖g‖² = ‖G‖² + tr Σ / m,
    with g the mean. Raises ValueError for a batch of one example.
    """

    def of(params, batch, microbatch):
        m = number(f, batch)
        if m < 2:
            raise ValueError("the batch has 1 example: a noise scale needs at least two")

        def both(leaves):
            squares = sum(map(jnp.sum, _squares(leaves)))
            return (squares, list(map(unformed.total, leaves))), ()

        (squares, sums), _ = ask(f, params, batch, microbatch, both)
        single, whole = squares / m, sum(jnp.sum(jnp.square(g / m)) for g in sums)
        noise, signal = (single - whole) * m / (m - 1), (m * whole - single) / (m - 1)
        return NoiseScale(noise / signal, noise, signal)

    return answered(f, of, microbatch, checkpoint)


def _squares(leaves: list[Leaf]) -> list[Float[Array, " m"]]:
    return list(map(unformed.squared_norms, leaves))
