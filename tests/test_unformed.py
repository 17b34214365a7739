"""Gradients left unformed against jax.vmap of jax.grad, on programs of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from per_example_programs import PROGRAMS, M

from jaxbackprop.graph import unformed
from jaxbackprop.graph.unformed import pairs, quantities

WEIGHTS = np.linspace(-1.0, 2.0, M)
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def run(f, *arguments):
    """Compiled as quickly as can be."""
    return jax.jit(f).lower(*arguments).compile(FAST)(*arguments)


def quick(name):
    program = PROGRAMS[name]()

    def ours(params, batch):
        leaves = unformed.unformed(program.f, params, batch, M)
        cheaper = quantities.by_inner_products
        modes = {"as is cheaper": cheaper, "inner": possible, "formed": lambda *a: False}
        found = {}
        for mode, decide in modes.items():
            quantities.by_inner_products = decide
            try:
                found[mode] = list(map(unformed.squared_norms, leaves))
            finally:
                quantities.by_inner_products = cheaper
        once = list(map(unformed.formed_once, leaves))
        return found | {
            "once": list(map(unformed.squared_norms, once)),
            "weighted, once": [unformed.total(leaf, jnp.asarray(WEIGHTS)) for leaf in once],
            "gradients": list(map(unformed.formed_each, leaves)),
            "weighted": [unformed.total(leaf, jnp.asarray(WEIGHTS)) for leaf in leaves],
            "sum": list(map(unformed.total, leaves)),
            "squares": list(map(unformed.total_squares, leaves)),
        }

    return run(ours, program.params, program.batch)


def possible(sites, dense=False, shared=False):
    """Inner products wherever they can be had."""
    return quantities.multiplications(sites, dense) is not None


def reference(name):
    """The same from one gradient an example, by NumPy."""
    f, params, batch = PROGRAMS[name]()
    found = run(jax.vmap(jax.grad(f), (None, 0)), params, batch)
    gradients = [np.asarray(g) for g in jax.tree.leaves(found)]
    norms = [np.sum(g.reshape(M, -1) ** 2, 1) for g in gradients]
    weighted = [np.tensordot(WEIGHTS, g, 1) for g in gradients]
    return {
        **dict.fromkeys(("as is cheaper", "inner", "formed", "once"), norms),
        "weighted, once": weighted,
        "gradients": gradients,
        "weighted": weighted,
        "sum": [g.sum(0) for g in gradients],
        "squares": [np.sum(g**2, 0) for g in gradients],
    }


def gaps(name):
    """Of each quantity the largest error of a leaf, in units of its largest number."""
    found, wanted = quick(name), reference(name)
    return {
        quantity: max(
            np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-300)
            for a, b in zip(found[quantity], wanted[quantity], strict=True)
        )
        for quantity in wanted
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_left_unformed_is_one_gradient_an_example(name, x64):
    assert max(gaps(name).values()) <= 1e-12


@pytest.mark.parametrize(
    ("rows", "columns", "summed_over"),
    [(3, 256, "([1], [0])"), (256, 3, "([0], [0])"), (3, 4, "([0], [0])")],
)
@pytest.mark.parametrize("crossed", [False, True])
def test_only_a_narrow_factor_of_a_wide_product_is_turned(rows, columns, summed_over, crossed):
    """So that the first operand, which has the outer axis, is summed over its last one."""
    of_rows = pairs.Factor(jnp.ones((5, rows)), (("at", 0), columns))
    of_columns = pairs.Factor(jnp.ones((5, columns)), (("at", 0), 1))
    u, v = (of_columns, of_rows) if crossed else (of_rows, of_columns)
    pair = pairs.Pair(u, v, (columns, 1), (rows, columns), (rows, columns))
    graph = str(jax.make_jaxpr(lambda: pairs.formed(pair))())
    assert f"dimension_numbers=({summed_over}" in graph


WRONG = {
    "no products between the places of a sequence": (pairs, "_apart", lambda pair: pair),
    "no cross terms between two uses": (quantities, "apart", lambda a, b: True),
    "no cross terms with the dense part": (quantities, "inner_with", lambda a, pair: 0),
}


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("no products between the places of a sequence", "sequence"),
        ("no products between the places of a sequence", "convolved"),
        ("no products between the places of a sequence", "recurrent"),
        ("no cross terms between two uses", "matrix_and_its_transpose"),
        ("no cross terms between two uses", "tied_embedding"),
        ("no cross terms between two uses", "slices_that_overlap"),
        ("no cross terms with the dense part", "weight_decay_inside"),
    ],
)
def test_wrong_versions_are_rejected(fault, name, x64, monkeypatch):
    monkeypatch.setattr(*WRONG[fault])
    assert gaps(name)["inner"] > 1e-3
