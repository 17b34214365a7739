"""The network: what is fixed (`Network`), what is learned (`params`), what the forward pass leaves.

Parameters are a tuple of `Layer`s, counted forward. A long run of hidden layers of one shape is one
entry: a *stack*, whose arrays have a leading axis and which forward and backward pass scan, so that
program and compile time do not grow with depth. `stack` and `unstack` convert; every function of
the library takes either form.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from jaxbackprop.activations import ACTIVATIONS, Activation
from jaxbackprop.losses import LOSSES, Loss

# Legend: n neurons of a layer, p of the previous one, m examples, depth layers of a stack.

STACKED_RUN = 16  # shorter runs of equal layers are quicker unrolled than scanned
T = TypeVar("T")
SCHEMES = ("he", "xavier", "normal")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Network:
    """A dense network: its layer widths, input first; its activations; its loss.

    `hidden` and `output` name an entry of `activations.ACTIVATIONS`, or are an `Activation` of your
    own. It has no arrays: it is hashable and passes through `jax.jit` as it is.

    Raises ValueError for a width below 1 or not whole, for an unknown name (and suggests the
    nearest one), and for a pair of output and loss whose output error is not defined: softmax and
    cross_entropy need each other, and binary_cross_entropy needs sigmoid.
    """

    sizes: Sequence[int]
    hidden: str | Activation = "sigmoid"
    output: str | Activation = "sigmoid"
    loss: str = "squared_error"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if len(self.sizes) < 2:
            raise ValueError(f"sizes needs an input and an output width, got {self.sizes}")
        for l, width in enumerate(self.sizes):
            if isinstance(width, bool) or not hasattr(width, "__index__") or width < 1:
                raise ValueError(f"sizes[{l}] is {width!r}: a width is a whole number ≥ 1")
        object.__setattr__(self, "sizes", tuple(int(width) for width in self.sizes))
        if self.sigma(0).name == "softmax" and self.depth > 1:
            raise ValueError("hidden='softmax': softmax can only be the output")
        _named("loss", self.loss, LOSSES)
        needed, output = LOSSES[self.loss].output, self.sigma(self.depth).name
        if needed not in (None, output):
            raise ValueError(f"loss='{self.loss}' needs output='{needed}', got output='{output}'")
        if output == "softmax" and needed != "softmax":
            raise ValueError(f"output='softmax' needs loss='cross_entropy', got '{self.loss}'")

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self.sizes) - 1

    def sigma(self, l: int) -> Activation:
        """The activation of layer l = 1 … L."""
        which = "output" if l == self.depth else "hidden"
        named = getattr(self, which)
        return named if isinstance(named, Activation) else _named(which, named, ACTIVATIONS)

    @property
    def cost(self) -> Loss:
        """The loss as functions: C and ∇ₐC."""
        return LOSSES[self.loss]


def widths(sizes: Sequence[int]) -> str:
    """The sizes in words, runs of equal ones counted: "784, 200 × 256, 10"."""
    runs = [(width, len(list(run))) for width, run in itertools.groupby(sizes)]
    return ", ".join(f"{n} × {width}" if n > 1 else f"{width}" for width, n in runs)


def _named(field: str, name: object, table: dict[str, T]) -> T:
    """table[name], or a ValueError that suggests the nearest name."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(table)}"
    raise ValueError(f"{field}={name!r} is unknown: {hint}")


class Layer(NamedTuple):
    """The weights W and biases b of one layer, or of a stack of equal layers."""

    W: Float[Array, "*depth n p"]
    b: Float[Array, "*depth n 1"]


Params = tuple[Layer, ...]


class Trace(NamedTuple):
    """What the forward pass leaves for the backward pass: the residuals.

    `activations[0]` is x; `zs[k]` and `activations[k + 1]` belong to `params[k]`, and have a
    leading axis where that is a stack.
    """

    zs: tuple[Float[Array, "*depth n m"], ...]
    activations: tuple[Float[Array, "*depth n m"], ...]


def init(
    network: Network,
    key: PRNGKeyArray,
    dtype: DTypeLike = jnp.float32,
    scheme: str | None = None,
) -> Params:
    """Random weights and zero biases, one key a layer.

    `scheme`: "he", variance 2/fan_in (He et al., 2015); "xavier", 2/(fan_in + fan_out) (Glorot and
    Bengio, 2010); "normal", variance 1, the choice that both papers cure. By default each layer's
    activation chooses: "he" for the relu family, "xavier" for the rest.

    Raises ValueError for an unknown scheme, a dtype that is not floating, or what is no key.
    """
    if scheme is not None:
        _named("scheme", scheme, dict.fromkeys(SCHEMES))
    try:
        floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        name = getattr(dtype, "__name__", dtype)
        raise ValueError(f"dtype is {name}: parameters are floating point")
    if not _is_key(key):
        raise ValueError(f"key is {key!r}, expected one such as jax.random.key(0)")
    keys = jax.random.split(key, network.depth)

    def layer(l: int, key: PRNGKeyArray) -> Layer:
        p, n = network.sizes[l - 1], network.sizes[l]
        variance = {"he": 2 / p, "xavier": 2 / (p + n), "normal": 1.0}
        scale = math.sqrt(variance[scheme or network.sigma(l).scheme])
        W = jax.random.normal(key, (n, p), dtype) * jnp.asarray(scale, dtype)
        return Layer(W, jnp.zeros((n, 1), dtype))

    shapes = zip(network.sizes[1:-1], network.sizes[:-2], strict=True)
    entries = []
    for first, length in _runs(list(shapes)):
        own = keys[first : first + length]
        entries.append(
            jax.vmap(lambda key, l=first + 1: layer(l, key))(own)
            if length > 1
            else layer(first + 1, own[0])
        )
    return (*entries, layer(network.depth, keys[-1]))


def _is_key(key: object) -> bool:
    """A typed key, or the two integers of an untyped one."""
    if not isinstance(key, jax.Array):
        return False
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.shape == () if typed else (key.dtype == jnp.uint32 and key.shape == (2,))


def _runs(shapes: list) -> Iterator[tuple[int, int]]:
    """(first, length) of each run of equal shapes, in order; short runs one by one."""
    first = 0
    for _, run in itertools.groupby(shapes):
        length = len(list(run))
        if length >= STACKED_RUN:
            yield first, length
        else:
            yield from ((first + i, 1) for i in range(length))
        first += length


def unstack(params: Params) -> Params:
    """One `Layer` a layer."""
    return tuple(
        Layer(W, b)
        for layer in params
        for W, b in (zip(layer.W, layer.b, strict=True) if layer.W.ndim == 3 else [layer])
    )


def stack(params: Params) -> Params:
    """Long runs of equal hidden layers as one entry each, as `init` returns them."""
    layers = unstack(params)
    entries = [
        Layer(*(jnp.stack(arrays) for arrays in zip(*layers[first : first + length], strict=True)))
        if length > 1
        else layers[first]
        for first, length in _runs([layer.W.shape for layer in layers[:-1]])
    ]
    return (*entries, layers[-1])


def layers_in(layer: Layer) -> int:
    """How many layers an entry of `params` stands for."""
    return layer.W.shape[0] if layer.W.ndim == 3 else 1


def forward(network: Network, params: Params, x: Float[Array, "p m"]) -> Trace:
    """The forward pass: zˡ = Wˡ aˡ⁻¹ + bˡ, aˡ = σ(zˡ), every z and a kept.

    Raises ValueError where the shape or dtype of x or of an entry of params does not fit.
    """
    check_params(network, params)
    check_columns("x", x, network.sizes[0], params)
    a, l, zs, activations = x, 0, [], [x]
    for layer in params:
        l += layers_in(layer)
        sigma = network.sigma(l)

        def step(a, layer, sigma=sigma):
            z = layer.W @ a + layer.b
            a = sigma.value(z)
            return a, (z, a)

        a, (z, kept) = jax.lax.scan(step, a, layer) if layer.W.ndim == 3 else step(a, layer)
        zs.append(z)
        activations.append(kept)
    return Trace(tuple(zs), tuple(activations))


def cost(network: Network, trace: Trace, y: Float[Array, "n m"]) -> Float[Array, ""]:
    """C = (1/m) Σᵢ Cᵢ of a forward pass. Raises ValueError where y does not fit the output."""
    check_targets(trace.activations[-1], y)
    return jnp.mean(network.cost.cost(trace.zs[-1], trace.activations[-1], y))


def loss(
    network: Network, params: Params, x: Float[Array, "p m"], y: Float[Array, "n m"]
) -> Float[Array, ""]:
    """C = (1/m) Σᵢ Cᵢ as a function of the parameters: what jax.grad differentiates."""
    return cost(network, forward(network, params, x), y)


def check_params(network: Network, params: Params) -> None:
    """Raise ValueError, naming the entry, where params are not those of the network."""
    for k, layer in enumerate(_entries(params)):
        ndims = [getattr(array, "ndim", None) for array in layer] if _is_layer(layer) else None
        if ndims not in ([2, 2], [3, 3]):
            raise ValueError(
                f"params[{k}] is {_what(layer)}, expected a Layer of two matrices, or of two stacks"
            )
    layers = sum(map(layers_in, params))
    if layers != network.depth:
        raise ValueError(f"params have {layers} layers, the network has {network.depth}")
    if params[-1].W.ndim == 3:
        raise ValueError("the last of params is a stack: the output layer has an entry of its own")
    l, dtype = 0, params[0].W.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"params[0].W is {dtype}, expected floating point")
    for k, layer in enumerate(params):
        first, l = l + 1, l + layers_in(layer)
        for of in range(first, l + 1):
            n, p = network.sizes[of], network.sizes[of - 1]
            lead = layer.W.shape[:-2]
            for name, array, last in (("W", layer.W, p), ("b", layer.b, 1)):
                if array.shape != (*lead, n, last):
                    raise ValueError(
                        f"params[{k}].{name} has shape {array.shape}, expected "
                        f"{(*lead, n, last)} for layer {of} of sizes ({widths(network.sizes)})"
                    )
                if array.dtype != dtype:
                    raise ValueError(
                        f"params[{k}].{name} is {array.dtype}, params[0].W is {dtype}: use one"
                    )


def _entries(params: object) -> Sequence:
    if not isinstance(params, tuple | list) or isinstance(params, Layer):
        raise ValueError(f"params are {_what(params)}, expected a tuple of Layers")
    return params


def _is_layer(entry: object) -> bool:
    return isinstance(entry, Layer)


def _what(value: object) -> str:
    """A value in an error: its kind, and the shapes of what it holds."""
    shapes = (
        [getattr(part, "shape", type(part).__name__) for part in value]
        if isinstance(value, tuple | list)
        else getattr(value, "shape", "")
    )
    return f"{type(value).__name__} {shapes}".strip()


def check_columns(name: str, x: Array, rows: int, params: Params) -> None:
    """Raise ValueError unless x is (rows, m) with m ≥ 1, of the parameters' dtype."""
    if not hasattr(x, "ndim"):
        raise ValueError(f"{name} is {_what(x)}, expected an array of ({rows}, m)")
    if x.ndim != 2 or x.shape[0] != rows:
        raise ValueError(f"{name} has shape {x.shape}, expected ({rows}, m): examples are columns")
    if x.shape[1] == 0:
        raise ValueError(f"{name} has shape {x.shape}: the batch is empty")
    dtype = params[0].W.dtype
    if x.dtype != dtype:
        raise ValueError(f"{name} is {x.dtype}, the parameters are {dtype}: cast one of them")


def check_trace(params: Params, trace: Trace) -> None:
    """Raise ValueError unless trace is one that `forward` left for params, by its shapes."""
    if not isinstance(trace, Trace):
        raise ValueError(f"trace is {_what(trace)}, expected the Trace that forward returns")
    rows = [layer.b.shape[:-1] for layer in params]
    for name, arrays, expected in (
        ("zs", trace.zs, rows),
        ("activations", trace.activations, [params[0].W.shape[-1:], *rows]),
    ):
        found = [jnp.shape(array)[:-1] for array in arrays]
        if found != expected:
            raise ValueError(f"trace.{name} are for layers of {found}, params of {expected}")
    columns = {jnp.shape(array)[-1] for arrays in trace for array in arrays}
    if len(columns) > 1:
        raise ValueError(f"trace has arrays of {' and '.join(map(str, sorted(columns)))} examples")


def check_targets(a: Array, y: Array) -> None:
    """Raise ValueError unless y has the shape and dtype of the output a."""
    if not hasattr(y, "ndim"):
        raise ValueError(f"y is {_what(y)}, expected an array of {a.shape}")
    if y.shape != a.shape:
        hint = "; for class labels see data.one_hot" if y.ndim == 1 else ""
        raise ValueError(f"y has shape {y.shape}, the output has shape {a.shape}{hint}")
    if y.dtype != a.dtype:
        raise ValueError(f"y is {y.dtype}, the output is {a.dtype}: cast it")
