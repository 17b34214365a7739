"""What does not fit the network is refused here, early and in one sentence."""

import inspect
import operator
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxbackprop.network import Layer, Network, Params, Trace, layers_in, widths


def check_network(network: object) -> None:
    """Raise ValueError unless it is a Network: the first argument everywhere."""
    if not isinstance(network, Network):
        raise ValueError(f"network is {what(network)}, expected a Network such as Network((4, 3))")


def check_kind(name: str, value: object, kind: type, told: str) -> None:
    """Raise ValueError unless it is of that kind: what it is, and where one gets the right one."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {what(value)}, expected {told}")


def check_whole(name: str, number: object, least: int = 1) -> None:
    """Raise ValueError unless it is a whole number, and that large."""
    try:
        whole = operator.index(number)  # pyright: ignore
    except TypeError:
        whole = None
    if whole is None or isinstance(number, bool):
        found = what(number) if hasattr(number, "shape") else repr(number)
        raise ValueError(f"{name} is {found}, expected a whole number")
    if whole < least:
        raise ValueError(f"{name} is {whole}, expected at least {least}")


def check_takes(name: str, function: object, *arguments: str) -> None:
    """Raise ValueError unless it is a function that can be called with so many arguments."""
    wanted = f"expected a function of ({', '.join(arguments)})"
    if not callable(function):
        raise ValueError(f"{name} is {function!r}, {wanted}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be called: {error}; {wanted}") from None
    except ValueError:  # written in C: it says nothing of its arguments
        pass


def path_of(name: str, path: object) -> pathlib.Path:
    """As a Path; ValueError where it is none."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name} is {what(path)}, expected a path such as 'runs/a'")
    return pathlib.Path(path)


def check_params(network: Network, params: Params) -> None:
    """Raise ValueError, naming the entry, where params are not those of the network."""
    check_network(network)
    for k, layer in enumerate(entries_of(params)):
        ndims = [getattr(array, "ndim", None) for array in layer] if _is_layer(layer) else None
        if ndims not in ([2, 2], [3, 3]):
            raise ValueError(
                f"params[{k}] is {what(layer)}, expected a Layer of two matrices, or of two stacks"
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


def entries_of(params: object) -> Sequence:
    """params, or a ValueError where they are no tuple or list."""
    if not isinstance(params, tuple | list) or isinstance(params, Layer):
        raise ValueError(f"params are {what(params)}, expected a tuple of Layers")
    return params


def _is_layer(entry: object) -> bool:
    return isinstance(entry, Layer)


def what(value: object) -> str:
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
        raise ValueError(f"{name} is {what(x)}, expected an array of ({rows}, m)")
    if x.ndim != 2 or x.shape[0] != rows:
        turned = f", as in {name}.T" if x.ndim == 2 and x.shape[1] == rows else ""
        raise ValueError(
            f"{name} has shape {x.shape}, expected ({rows}, m): examples are columns here{turned}"
        )
    if x.shape[1] == 0:
        raise ValueError(f"{name} has shape {x.shape}: the batch is empty")
    dtype = params[0].W.dtype
    if x.dtype != dtype:
        raise ValueError(f"{name} is {x.dtype}, the parameters are {dtype}: cast one of them")


def check_trace(params: Params, trace: Trace) -> None:
    """Raise ValueError unless trace is one that `forward` left for params, by its shapes."""
    check_is_trace(trace)
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


def check_is_trace(trace: object) -> None:
    check_kind("trace", trace, Trace, "the Trace that forward returns")


def check_targets(a: Array, y: Array) -> None:
    """Raise ValueError unless y has the shape and dtype of the output a."""
    if not hasattr(y, "ndim"):
        raise ValueError(f"y is {what(y)}, expected an array of {a.shape}")
    if y.shape != a.shape:
        hint = ""
        if y.ndim == 1:
            hint = "; for class labels see data.one_hot(labels, classes).T"
        elif y.shape == a.shape[::-1]:
            hint = ": examples are columns here, as in y.T"
        raise ValueError(f"y has shape {y.shape}, the output has shape {a.shape}{hint}")
    if y.dtype != a.dtype:
        raise ValueError(f"y is {y.dtype}, the output is {a.dtype}: cast it")


def check_rows(network: Network, inputs: Array, targets: Array) -> None:
    """Raise ValueError unless inputs are (N, p) and targets (N, n) with N ≥ 1, of one dtype."""
    check_network(network)
    widths = {"inputs": network.sizes[0], "targets": network.sizes[-1]}
    for (name, width), array in zip(widths.items(), (inputs, targets), strict=True):
        if not hasattr(array, "ndim"):
            raise ValueError(f"{name} are {what(array)}, expected an array of (N, {width})")
        if array.ndim != 2 or array.shape[1] != width:
            hint = ""
            if array.ndim == 2 and array.shape[0] == width:
                hint = f", as in {name}.T"
            elif name == "targets" and array.ndim == 1:
                hint = "; for class labels see data.one_hot"
            raise ValueError(
                f"{name} have shape {array.shape}, expected (N, {width}): "
                f"examples are rows here{hint}"
            )
    if len(targets) != len(inputs):
        raise ValueError(
            f"inputs have {len(inputs)} rows, targets {len(targets)}: each row is an example"
        )
    if not len(inputs):
        raise ValueError("inputs and targets have no rows: there are no examples")
    if inputs.dtype != targets.dtype:
        raise ValueError(f"inputs are {inputs.dtype}, targets {targets.dtype}: cast one of them")


def check_seam(seam: object) -> None:
    """Raise ValueError unless it is None or can be called with a layer's number and its δ."""
    if seam is not None:
        check_takes("seam", seam, "l", "delta")


def check_feedback(feedback: object, params: Params) -> None:
    """Raise ValueError unless it has an array for each entry of params, shaped as its W."""
    shapes = [layer.W.shape for layer in params]
    if not isinstance(feedback, tuple | list) or [jnp.shape(W) for W in feedback] != shapes:
        raise ValueError(
            f"feedback is {what(feedback)}, expected one array for each entry of params, "
            f"shaped as its W: {shapes}"
        )


def check_error(delta: Array, l: object, used: Any) -> Array:
    """What a seam made of the δ of layer l; ValueError unless it has δ's shape and dtype."""
    expected = f"expected δ of shape {delta.shape}, {delta.dtype}"
    if getattr(used, "shape", None) != delta.shape:
        raise ValueError(f"seam returned {what(used)} for layer {_number(l)}, {expected}")
    if used.dtype != delta.dtype:
        raise ValueError(f"seam returned {used.dtype} for layer {_number(l)}, {expected}")
    return used


def _number(l: object) -> str:
    """A layer's number; in a stack it is traced, and the same for all of its layers."""
    return str(l) if isinstance(l, int) else "l of a stack"


def check_key(key: object) -> None:
    """Raise ValueError unless it is one key: a typed one, or the two integers of an untyped one."""
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.shape == () if typed else (key.dtype == jnp.uint32 and key.shape == (2,)):
            return
    found = f"of shape {key.shape}" if isinstance(key, jax.Array) else repr(key)
    raise ValueError(f"key is {found}, expected one such as jax.random.key(0)")


def check_optimizer(optimizer: object) -> None:
    """Raise ValueError unless it has optax's two functions."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        name = getattr(optimizer, "__name__", None)
        hint = f": call it, as in {name}(1e-3)" if callable(optimizer) and name else ""
        raise ValueError(f"optimizer is {name or what(optimizer)}, expected one of optax's{hint}")


def check_gradient(gradient: object) -> None:
    """Raise ValueError unless it can be called in backprop's place."""
    if not callable(gradient):
        raise ValueError(
            f"gradient is {gradient!r}, expected a function of (network, params, x, y), such as "
            "backprop or functools.partial(backprop, checkpoint=…)"
        )
