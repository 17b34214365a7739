"""What is computed: a network, a batch, an epoch; and the form in which a peer hands it back."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbackprop import Network, init, unstack

Weights = Sequence[tuple[np.ndarray, np.ndarray]]
RATES = {"sgd": 0.1, "adam": 1e-3}


class Work(NamedTuple):
    """A network with softmax and cross-entropy, a batch, and the batches of an epoch."""

    name: str
    sizes: tuple[int, ...]
    hidden: str
    batch: int
    steps: int

    @property
    def forward_flops(self) -> int:
        """Of the products of a forward pass: W a in each layer."""
        pairs = zip(self.sizes[1:], self.sizes[:-1], strict=True)
        return sum(2 * self.batch * n * p for n, p in pairs)

    @property
    def flops(self) -> int:
        """Of the products of one gradient: three a layer, two for the first, which has no Wᵀ δ."""
        return 3 * self.forward_flops - 2 * self.batch * self.sizes[0] * self.sizes[1]

    @property
    def network(self) -> Network:
        return Network(self.sizes, self.hidden, "softmax", "cross_entropy")


class Run(NamedTuple):
    """`call()` returns when the work is done; `read(result)` is the result as (W, b) a layer."""

    call: Callable[[], Any]
    read: Callable[[Any], Weights]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


def material(work: Work, examples: int, seed: int = 0) -> tuple[Weights, np.ndarray, np.ndarray]:
    """Random weights, inputs and one-hot targets in float32."""
    params = init(work.network, jax.random.key(seed))
    random = np.random.default_rng(seed)
    X = random.standard_normal((examples, work.sizes[0]), np.float32)
    Y = np.eye(work.sizes[-1], dtype=np.float32)[random.integers(work.sizes[-1], size=examples)]
    return [(np.array(l.W), np.array(l.b)) for l in unstack(params)], X, Y


def compiled(f: Callable, args: tuple, read: Callable) -> Run:
    """A jitted function with its compile time (tracing included) and temporary memory."""
    begin = time.perf_counter()
    program = jax.jit(f).lower(*args).compile()
    seconds = time.perf_counter() - begin
    temporary = program.memory_analysis().temp_size_in_bytes
    return Run(lambda: jax.block_until_ready(program(*args)), read, seconds, temporary)


def from_rows(layers: Sequence[tuple[Any, Any]]) -> Weights:
    """From libraries that keep b as a vector."""
    return [(np.asarray(W), np.asarray(b)[:, None]) for W, b in layers]


def shuffled(work: Work, examples: int) -> np.ndarray:
    """The rows of each batch of an epoch, in a new order."""
    order = np.random.default_rng().permutation(examples)
    return order[: work.steps * work.batch].reshape(work.steps, work.batch)


WORKS = {
    work.name: work
    for work in (
        Work("784,128,10", (784, 128, 10), "relu", 128, 468),
        Work("784,1024x3,10", (784, 1024, 1024, 1024, 10), "relu", 512, 8),
        Work("2048x5", (2048,) * 5, "relu", 1024, 2),
        Work("64 layers", (256,) * 65, "tanh", 256, 8),
        Work("256 layers", (256,) * 257, "tanh", 256, 3),
    )
}
