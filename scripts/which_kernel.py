"""Which matrix product of backpropagation gets XLA's fast kernel on this CPU, and which does not.

    python scripts/which_kernel.py

Nothing is timed: each product is compiled, and the optimized program is searched for the fast
kernel's fusion (`__ynn_fusion`). It takes a few seconds.
"""

import command  # noqa: F401
import jax
import jax.numpy as jnp
import tyro
from parts.measure import machine
from rich.console import Console
from rich.table import Table

PRODUCTS = {  # the axis of each operand that is contracted; W is n × p, a and δ are columns or rows
    "columns": {"W a": (1, 0), "Wᵀ δ": (0, 0), "δ aᵀ": (1, 1)},
    "rows": {"a Wᵀ": (1, 1), "δ W": (1, 0), "δᵀ a": (0, 0)},
}


def is_fast(axes: tuple[int, int], size: int = 512) -> bool:
    """Does the product over these axes of two square matrices compile to the fast kernel?"""
    matrix = jax.ShapeDtypeStruct((size, size), jnp.float32)
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (([axes[0]], [axes[1]]), ([], []))))
    return "__ynn_fusion" in product.lower(matrix, matrix).compile().as_text()


def main() -> None:
    table = Table("examples in", "product", "contracted axes", "kernel", title=machine())
    for layout, products in PRODUCTS.items():
        for name, axes in products.items():
            kernel = "fast" if is_fast(axes) else "slow"
            table.add_row(layout, name, f"{axes[0]}, {axes[1]}", kernel)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
