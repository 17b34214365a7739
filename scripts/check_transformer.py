"""How long a gradient check of a whole model takes: a transformer of flax's, a million parameters.

    python scripts/check_transformer.py
    python scripts/check_transformer.py --blocks 2 --width 16 --tokens 8

The right gradient has to pass, and one with a leaf scaled by 1.01 has to fail, by that leaf's name.
It takes a minute.
"""

import dataclasses
import sys
import time

import command  # noqa: F401
import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from parts.arguments import check
from parts.measure import machine
from parts.progress import doing, told

from jaxbackprop.check import check_gradients

WORDS = 64  # in the vocabulary


@dataclasses.dataclass(frozen=True)
class Options:
    """The model and its data."""

    width: int = 128
    """Of each token's vector."""
    blocks: int = 5
    """Of attention and two dense layers."""
    heads: int = 4
    """Of each attention."""
    batch: int = 2
    """Sequences."""
    tokens: int = 32
    """In a sequence."""
    seed: int = 0
    """Decides weights and data."""

    def __post_init__(self) -> None:
        check(self, width=1, blocks=1, heads=1, batch=1, tokens=1)
        if self.width % self.heads:
            raise ValueError(f"--width is {self.width}, not a multiple of --heads {self.heads}")


class Block(nnx.Module):
    """Attention and a layer of four times the width, each after a normalisation."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(heads, width, rngs=rngs, decode=False)
        self.before, self.between = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.wide = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.before(x)))
        return x + self.narrow(nnx.gelu(self.wide(self.between(x))))


class Transformer(nnx.Module):
    """The next token's logits."""

    def __init__(self, options: Options):
        rngs = nnx.Rngs(options.seed)
        self.embed = nnx.Embed(WORDS, options.width, rngs=rngs)
        self.blocks = nnx.List(
            [Block(options.width, options.heads, rngs) for _ in range(options.blocks)]
        )
        self.last = nnx.Linear(options.width, WORDS, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


@told
def main(options: Options) -> int:
    graph, params, rest = nnx.split(Transformer(options), nnx.Param, ...)
    shape = (options.batch, options.tokens + 1)
    tokens = jax.random.randint(jax.random.key(options.seed + 1), shape, 0, WORDS)

    def loss(params: nnx.State) -> jax.Array:
        model = nnx.merge(graph, params, rest, copy=True)
        logits = model(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    leaves = jax.tree.leaves(params)
    print(f"{sum(leaf.size for leaf in leaves):,} parameters, {len(leaves)} leaves; {machine()}")
    doing("checking the right gradient")
    begin = time.perf_counter()
    right = check_gradients(loss, params)
    print(f"right: {str(right).split(chr(10))[-1]}; {time.perf_counter() - begin:.1f} s")

    gradient = jax.jit(jax.grad(loss))(params)
    wrong = gradient["blocks"][0]["wide"]["kernel"]
    wrong.set_value(1.01 * jnp.asarray(wrong.get_value()))
    doing("checking the wrong gradient")
    begin = time.perf_counter()
    report = check_gradients(loss, params, gradient=gradient)
    named = [leaf.name for leaf in report.leaves if not leaf.ok]
    print(f"planted: {', '.join(named) or 'missed'}; {time.perf_counter() - begin:.1f} s")
    return 0 if right.ok and named == ["blocks.0.wide.kernel"] else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
