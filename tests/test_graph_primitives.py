"""Every primitive that jax can differentiate has a place here, and docs/graph.md says which."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxbackprop.graph import UnsupportedPrimitive, grad
from jaxbackprop.graph.lines import innermost, stack
from jaxbackprop.graph.rules import FLAT, RULES
from jaxbackprop.graph.rules.refused import REFUSED
from jaxbackprop.graph.walk import STRUCTURE

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "graph.md"
# They have no results: the forward pass does them, and the gradient passes by.
EFFECTS = {"check", "debug_callback", "debug_print", "inspect_sharding"}
PLACES = {"supported": set(RULES), "structural": set(STRUCTURE), "flat": set(FLAT)}
PLACES |= {"effect": EFFECTS, "refused": set(REFUSED) - set(RULES) - set(STRUCTURE)}


# Asked in a process of its own: other libraries add primitives to jax's tables. (Those of jax's own
# experiment with sparse arrays bring their rules, as another library's do.)
TABLES = """
import jax.experimental.multihost_utils, jax.experimental.pallas, jax.experimental.sparse
from jax.interpreters import ad
from jaxbackprop.graph.foreign import is_foreign
known = {p for t in (ad.primitive_jvps, ad.primitive_transposes) for p in t}
print(*sorted({p.name for p in known if not is_foreign(p)}))
"""


def differentiable_in_jax():
    done = subprocess.run(
        [sys.executable, "-c", TABLES], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_every_primitive_that_jax_differentiates_is_classified():
    placed = set().union(*PLACES.values())
    new = differentiable_in_jax() - placed
    assert new == set(), "new in jax: give it a rule, a recorder, or a reason in rules/refused.py"


@pytest.mark.parametrize("name", PLACES)
def test_no_primitive_has_two_places(name):
    others = set().union(*(place for other, place in PLACES.items() if other != name))
    assert PLACES[name] & others == set()


def test_the_page_names_every_primitive_that_is_supported():
    page = DOCS.read_text()
    listed = page[page.index("## What is supported") : page.index("## Adding a rule")]
    words = set(re.findall(r"[a-z0-9_-]+", listed))
    assert (set(RULES) | set(STRUCTURE)) - words == set()
    rows = re.findall(r"^\| `[^|]*\|([^|]*)\|$", listed, re.MULTILINE)
    claimed = set(re.findall(r"[a-z0-9_-]+", " ".join(rows)))
    assert claimed - set(RULES) - set(STRUCTURE) == set()


def test_what_is_refused_says_why():
    with pytest.raises(UnsupportedPrimitive, match=r"'pure_callback': .*custom_vjp"):
        grad(lambda x: jax.pure_callback(jnp.sin, x, x))(1.0)


def test_the_way_back_has_the_lines_of_the_way_ahead():
    def f(x):
        y = jnp.cos(x)
        return jnp.exp(y)

    program = jax.make_jaxpr(grad(f))(1.0)
    lines = [innermost(stack([equation])) for equation in program.jaxpr.eqns]
    texts = [line.text if line else "" for line in lines]
    there, back = texts.index("y = jnp.cos(x)"), texts.index("return jnp.exp(y)")
    assert there < back < texts.index("y = jnp.cos(x)", back)


def test_a_mutable_array_of_what_is_not_differentiated_is_none_of_the_walks_business():
    def f(x, counts):
        ref = jax.new_ref(counts)
        ref[...] += 1
        return jnp.sum(x * ref[...])

    counts = jnp.array([1.0, 2.0])
    assert (jax.jit(grad(f))(counts, counts) == counts + 1).all()
