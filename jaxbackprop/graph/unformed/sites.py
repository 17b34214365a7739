"""Where a parameter meets an example: the operations whose product with it can stay unformed.

One entry a primitive, with its rule's local gradient as two factors: what the parameter met, kept
from the forward pass, and the cotangent of the output.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules import RULES
from jaxbackprop.graph.unformed.pairs import Factor, Pair, Rows, formed
from jaxbackprop.graph.unformed.views import View


class Site(NamedTuple):
    """One use of a parameter: the equation, which of its inputs the parameter is, and as what."""

    equation: Any
    operand: int
    view: View


class Kind(NamedTuple):
    """How the sites of one primitive are left unformed.

    `fits(equation, operand)` is why not, or None. `kept(equation, inputs, operand)` is what the
    parameter meets. `pair(site, owned, kept, ct)` names the factors, which have an axis in front
    for each loop; `owned` says which of these the parameter has too. `total` is the product formed,
    where there is a better way than from the pair.
    """

    fits: Callable[[Any, int], str | None]
    kept: Callable[[Any, Sequence, int], Any]
    pair: Callable[[Site, Sequence[bool], Any, Any], Pair]
    total: Callable[[Site, Sequence[bool], Any, Any], jax.Array]


def _from_pair(site, owned, kept, ct):
    return formed(KINDS[site.equation.primitive.name].pair(site, owned, kept, ct))


def _other(equation, inputs, operand):
    return inputs[1 - operand]


def _names(site: Site, owned: Sequence[bool]) -> tuple[list, list]:
    """The names of the loops and those of the view's own axes."""
    names = site.view.names()
    own = iter(names)
    loops = [next(own) if o else ("loop", d) for d, o in enumerate(owned)]
    return loops, list(own)


def _product(site, owned, kept, ct) -> Pair:
    """out = Σ_k x[b, i, k] w[b, k, j]: to w Σ_i x ct, with the axes of w named as w's own."""
    loops, w = _names(site, owned)
    sums, batches = site.equation.params["dimension_numbers"]
    w_sum, x_sum = sums[site.operand], sums[1 - site.operand]
    w_batch, x_batch = batches[site.operand], batches[1 - site.operand]
    x = [("at", d) for d in range(kept.ndim - len(loops))]
    for dx, dw in zip((*x_sum, *x_batch), (*w_sum, *w_batch), strict=True):
        x[dx] = w[dw]
    w_free = [name for d, name in enumerate(w) if d not in (*w_sum, *w_batch)]
    x_free = [name for d, name in enumerate(x) if d not in (*x_sum, *x_batch)]
    free = [*w_free, *x_free] if site.operand == 0 else [*x_free, *w_free]
    out = [*(w[d] for d in w_batch), *free]
    shape = site.view.strided.shape
    return Pair(
        Factor(kept, (*loops, *x)), Factor(ct, (*loops, *out)), (*site.view.names(),), shape, shape
    )


def _one_row(equation, operand) -> str | None:
    if operand != 0:
        return "the parameter is the index"
    shape = equation.invars[0].aval.shape
    sizes = equation.params["slice_sizes"]
    partial = [d for d, (n, s) in enumerate(zip(shape, sizes, strict=True)) if n != s]
    single = [d for d, s in enumerate(sizes) if s == 1]
    if len(partial) > 1 or any(sizes[d] != 1 for d in partial) or not single:
        return "it reads more than one row at a time"
    if equation.primitive.name == "gather":
        numbers = equation.params["dimension_numbers"]
        collapsed, place = numbers.collapsed_slice_dims, numbers.start_index_map
        if len(place) != 1 or collapsed != place or numbers.operand_batching_dims:
            return "it reads more than one row at a time"
    return None


def _gathered_row(equation) -> int:
    return equation.params["dimension_numbers"].start_index_map[0]


def _gather(site, owned, kept, ct) -> Pair:
    """A row read at every index: to the rows Σ 1[index = row] ct."""
    loops, w = _names(site, owned)
    row = _gathered_row(site.equation)
    offset = site.equation.params["dimension_numbers"].offset_dims
    rest, places = iter([n for d, n in enumerate(w) if d != row]), iter(range(ct.ndim))
    out = [next(rest) if d in offset else ("at", next(places)) for d in range(ct.ndim - len(loops))]
    index = (*loops, *(name for name in out if isinstance(name, tuple) and name[0] == "at"))
    clip = site.equation.params["mode"] == lax.GatherScatterMode.CLIP
    return _rows(site, row, w, Factor(kept[..., 0], index), Factor(ct, (*loops, *out)), clip)


def _sliced_row(equation) -> int:
    shape = equation.invars[0].aval.shape
    sizes = equation.params["slice_sizes"]
    single = [d for d, s in enumerate(sizes) if s == 1]
    return next((d for d in single if shape[d] != 1), single[0])


def _start(equation, inputs, operand):
    return inputs[1 + _sliced_row(equation)]


def _dynamic_slice(site, owned, kept, ct) -> Pair:
    """One row, at an index that is moved in if it lies outside."""
    loops, w = _names(site, owned)
    row = _sliced_row(site.equation)
    out = [("row",) if d == row else name for d, name in enumerate(w)]
    return _rows(site, row, w, Factor(kept, (*loops,)), Factor(ct, (*loops, *out)), True)


def _rows(site, row, w, index, ct, clip) -> Pair:
    shape = site.view.strided.shape
    size = site.view.shape[row]
    places, names = index
    if clip:
        places = jnp.clip(places, 0, size - 1)
    places = jnp.where((places >= 0) & (places < size), places, size)
    return Pair(Rows(places, names, w[row], size), ct, (*site.view.names(),), shape, shape)


def _kernel_fits(equation, operand) -> str | None:
    if operand != 1:
        return "the parameter is what is convolved, not the kernel"
    if equation.params["batch_group_count"] != 1:
        return "the convolution has groups of examples"
    return None if equation.outvars[0].aval.size else "no window fits"


def _kernel(site, owned, kept, ct) -> Pair:
    """A convolution is the product of the windows' patches with the kernel."""
    params = site.equation.params
    x_spec, w_spec, out_spec = params["dimension_numbers"]
    loops, w = _names(site, owned)
    n, groups = len(loops), params["feature_group_count"]
    kernel = [site.view.shape[d] for d in w_spec[2:]]
    x = kept.transpose(*range(n), *(n + d for d in x_spec))
    x = _patches(x.reshape(-1, *x.shape[n + 1 :]), kernel, params).reshape(
        *x.shape[: n + 1], groups, x.shape[n + 1] // groups, *kernel, *_spatial(ct, n, out_spec)
    )
    each = site.view.shape[w_spec[0]] // groups
    ct = ct.transpose(*range(n), *(n + d for d in out_spec))
    ct = ct.reshape(*ct.shape[: n + 1], groups, each, *ct.shape[n + 2 :])
    group, feature = _split(w[w_spec[0]], each, groups)
    places = [("at", d) for d in range(len(kernel))]
    window = [w[d] for d in w_spec[2:]]
    names, sizes = list(site.view.names()), list(site.view.strided.shape)
    place = len(names) - len(w) + w_spec[0]
    names[place : place + 1] = [group, feature]
    sizes[place : place + 1] = [groups, each]
    return Pair(
        Factor(x, (*loops, ("examples",), group, w[w_spec[1]], *window, *places)),
        Factor(ct, (*loops, ("examples",), group, feature, *places)),
        (*names,),
        (*sizes,),
        site.view.strided.shape,
    )


def _split(name, each: int, groups: int) -> tuple:
    """The names of the groups and of the features of one, from that of all the features."""
    feature = name if each > 1 else ("feature",)
    return (name * each if groups > 1 else ("group",)), feature


def _spatial(ct, n: int, out_spec) -> list[int]:
    return [ct.shape[n + d] for d in out_spec[2:]]


def _patches(x, kernel, params) -> jax.Array:
    """x, examples and features first, as [examples, features, *kernel, *places]."""
    edges = zip(params["padding"], params["lhs_dilation"], strict=True)
    spread = [(low, high, dilation - 1) for (low, high), dilation in edges]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *spread])
    for d, (k, step, dilation) in enumerate(
        zip(kernel, params["window_strides"], params["rhs_dilation"], strict=True)
    ):
        axis = 2 + 2 * d  # the window's axis comes before the place's, both of this dimension
        length = (x.shape[axis] - dilation * (k - 1) - 1) // step + 1
        windows = [
            lax.slice_in_dim(x, i * dilation, i * dilation + (length - 1) * step + 1, step, axis)
            for i in range(k)
        ]
        x = jnp.stack(windows, axis)
    count = len(kernel)
    return x.transpose(0, 1, *(2 + 2 * d for d in range(count)), *(3 + 2 * d for d in range(count)))


def _kernel_total(site, owned, kept, ct) -> jax.Array:
    """The convolution of the rule, with whatever is summed taken for more examples."""
    x_spec, _, out_spec = site.equation.params["dimension_numbers"]
    own = [d for d, o in enumerate(owned) if o]

    def fold(array, axis):
        array = jnp.moveaxis(array, [*own, len(owned) + axis], [*range(len(own)), len(owned)])
        shape = array.shape
        merged = math.prod(shape[len(own) : len(owned) + 1])
        array = array.reshape(*shape[: len(own)], merged, *shape[len(owned) + 1 :])
        return jnp.moveaxis(array, len(own), len(own) + axis)

    def by_rule(x, ct):
        w = jnp.zeros(site.view.shape, ct.dtype)  # its numbers are not in its own gradient
        rule = RULES["conv_general_dilated"]
        _, to_w = rule((ct,), (None,), x, w, **site.equation.params)
        return to_w() if to_w else jnp.zeros(w.shape, w.dtype)

    for _ in own:
        by_rule = jax.vmap(by_rule)
    return by_rule(fold(kept, x_spec[0]), fold(ct, out_spec[0]))


KINDS = {
    "dot_general": Kind(lambda equation, operand: None, _other, _product, _from_pair),
    "gather": Kind(_one_row, _other, _gather, _from_pair),
    "dynamic_slice": Kind(_one_row, _start, _dynamic_slice, _from_pair),
    "conv_general_dilated": Kind(_kernel_fits, _other, _kernel, _kernel_total),
}
