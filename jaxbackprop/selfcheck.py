"""Does it hold on this device? Both wings against jax.grad, and a promise of bytes, in seconds.

Gradients are compared leaf by leaf, ‖g − ĝ‖ ≤ 8 eps (depth + 1) ‖ĝ‖, in float32 with products at
their highest precision; and with products as the device rounds them (on a GPU TF32), and all in
bfloat16, against the same reference.
"""

import functools
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jaxtyping import Array, Float, PyTree

import jaxbackprop
from jaxbackprop import checkpoint
from jaxbackprop.backprop import backprop
from jaxbackprop.forward import loss
from jaxbackprop.graph import value_and_grad
from jaxbackprop.initialisation import init
from jaxbackprop.network import Network, Params
from jaxbackprop.stacks import stack

NETWORKS = {
    "plain layers, tanh": Network((12, 24, 16, 5), "tanh", "softmax", "cross_entropy"),
    "plain layers, gelu": Network((12, 24, 16, 5), "gelu", "sigmoid", "binary_cross_entropy"),
    "a stack of 20, relu": Network((12, *[16] * 21, 5), "relu", "identity"),
}
DEEP = Network((64, *[64] * 40, 10), "tanh", "softmax", "cross_entropy")


FLOAT32, BFLOAT16 = float(jnp.finfo("float32").eps), float(jnp.finfo("bfloat16").eps)
PRODUCTS = {"gpu": 2.0**-10, "tpu": BFLOAT16}  # eps of products by default; else as the numbers are


class Result(NamedTuple):
    """One line of the table. `held` is None where the device does not say."""

    name: str
    held: bool | None
    figure: str


def main() -> int:
    """Print versions, devices and the table; 0 where everything held, else 1."""
    jaxes = f"jax {jax.__version__}, jaxlib {jaxlib.version.__version__}"
    pythons = f"Python {platform.python_version()}, {platform.platform()}"
    print(f"jaxbackprop {jaxbackprop.__version__}, {jaxes}, {pythons}")
    print(f"devices: {', '.join(f'{d.device_kind} ({d})' for d in jax.devices())}\n")
    begun, held = time.perf_counter(), True
    for name, check in CHECKS.items():
        result = _result(name, check)
        held &= result.held is not False
        word = {True: "holds", False: "FAILS", None: "not told"}[result.held]
        print(f"{result.name:<58}{word:<10}{result.figure}", flush=True)
    print(f"\n{'everything holds' if held else 'FAILED'}, {time.perf_counter() - begun:.0f} s")
    return 0 if held else 1


def _result(name: str, check: Callable[[], tuple[bool | None, str]]) -> Result:
    """What a check found; that it could not even run is a finding."""
    try:
        with jax.default_matmul_precision("highest"):
            return Result(name, *check())
    except Exception as error:
        return Result(name, False, f"{type(error).__name__}: {error}".splitlines()[0])


def _problem(network: Network, batch: int = 32) -> tuple[Params, Array, Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (network.sizes[0], batch))
    y = jax.nn.softmax(jax.random.normal(keys[1], (network.sizes[-1], batch)), axis=0)
    return stack(init(network, keys[2])), x, y


def agree(ours: PyTree, reference: PyTree, depth: int, eps: float = FLOAT32) -> tuple[bool, str]:
    """The gate, and the worst leaf in units of it."""
    bound, worst = 8 * eps * (depth + 1), 0.0
    for g, r in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        g, r = np.asarray(g, np.float64), np.asarray(r, np.float64)
        gap, room = np.linalg.norm(g - r), bound * np.linalg.norm(r)
        if not gap <= room:  # NaN is no agreement
            worst = max(worst, gap / room if room and np.isfinite(gap) else np.inf)
        elif room:
            worst = max(worst, gap / room)
    return bool(worst <= 1), f"{worst:.2g} of the bound"


def _dense(network: Network, how: str | None) -> tuple[bool, str]:
    params, x, y = _problem(network)
    ours = jax.jit(functools.partial(backprop, network, checkpoint=how))(params, x, y)
    reference = jax.jit(jax.value_and_grad(functools.partial(loss, network)))(params, x, y)
    return agree(ours, reference, network.depth)


def _rounded(name: str, dtype: str) -> tuple[bool, str]:
    """With products by default, and coarser numbers, against float32 at the highest precision."""
    network = NETWORKS[name]
    arguments = _problem(network)
    reference = jax.jit(jax.value_and_grad(functools.partial(loss, network)))(*arguments)
    coarse = jax.tree.map(lambda array: array.astype(dtype), arguments)
    with jax.default_matmul_precision("default"):
        ours = jax.jit(functools.partial(backprop, network))(*coarse)
    products = PRODUCTS.get(jax.default_backend(), FLOAT32)
    return agree(ours, reference, network.depth, BFLOAT16 if dtype == "bfloat16" else products)


def _graph(f: Callable) -> tuple[bool, str]:
    keys = jax.random.split(jax.random.key(1), 3)
    params = {
        name: 0.3 * jax.random.normal(key, (16, 16)) for name, key in zip("WUV", keys, strict=True)
    }
    x = jax.random.normal(jax.random.key(2), (8, 16))
    return agree(
        jax.jit(value_and_grad(f))(params, x), jax.jit(jax.value_and_grad(f))(params, x), depth=8
    )


def _attention(params: dict[str, Array], x: Float[Array, "t n"]) -> Float[Array, ""]:
    queries, keys, values = (x @ W for W in params.values())
    return jnp.mean(jax.nn.softmax(queries @ keys.T / 4) @ values * x)


def _recurrent(params: dict[str, Array], x: Float[Array, "t n"]) -> Float[Array, ""]:
    def step(h, x):
        gate = jax.nn.sigmoid(x @ params["W"] + h @ params["U"])
        h = gate * h + (1 - gate) * jnp.tanh(x @ params["V"])
        return h, jnp.where(h > 0, h, 0.1 * h)

    return jnp.mean(jax.lax.scan(step, jnp.zeros(16), x)[1] ** 2)


def _bytes() -> tuple[bool | None, str]:
    """A third of what all activations take, asked for and compiled."""
    params, x, y = _problem(DEEP, 512)
    asked = 41 * 64 * 512 * 4 // 3
    gradient = functools.partial(backprop, DEEP, checkpoint=checkpoint.within(asked))
    analysis = cast(Any, jax.jit(gradient).lower(params, x, y).compile().memory_analysis())
    if analysis is None:
        return None, "the device does not report bytes"
    taken = analysis.temp_size_in_bytes
    return taken <= asked, f"{taken:,} of {asked:,} bytes"


def _checks() -> Iterator[tuple[str, Callable[[], tuple[bool | None, str]]]]:
    for name, network in NETWORKS.items():
        yield f"backprop: {name}", functools.partial(_dense, network, None)
    yield (
        "backprop: every third activation kept",
        lambda: _dense(NETWORKS["a stack of 20, relu"], "every:3"),
    )
    yield "backprop: no more bytes than within(bytes)", _bytes
    yield (
        "backprop: products as this device rounds them",
        lambda: _rounded("plain layers, tanh", "float32"),
    )
    yield "backprop: in bfloat16", lambda: _rounded("plain layers, gelu", "bfloat16")
    yield "value_and_grad: attention", lambda: _graph(_attention)
    yield "value_and_grad: a gated scan", lambda: _graph(_recurrent)


CHECKS = dict(_checks())
