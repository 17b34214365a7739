"""The picture of a graph: values forward, gradients backward, in DOT, Mermaid and SVG."""

import re
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxbackprop import inspect


def chapter(x, y):
    return (x + y) * y


def example():
    return inspect(chapter, argnums=(0, 1))(2.0, 3.0)


def recurrent(w, xs):
    def step(h, x):
        h = jax.nn.relu(w @ h + x)
        return h, h.sum()

    return jax.lax.scan(step, jnp.ones(2), xs)[1].sum()


def edges(dot: str) -> list[tuple[str, str, str]]:
    """(from, to, label) of the ways back."""
    found = re.findall(r'(n\d+) -> (n\d+) \[label=" (\S+) ", dir=back', dot)
    return [(b, a, label) for a, b, label in found]


MERMAID = """\
flowchart LR
  n0["x<br/>2<br/>∂f/∂x = 3"]
  n1["y<br/>3<br/>∂f/∂y = 3 + 5 = 8"]
  n2["v₂ = x + y<br/>5<br/>∂f/∂v₂ = 3"]
  n3["f = v₂ · y<br/>15<br/>∂f/∂f = 1"]
  n0 --> n2
  n1 --> n2
  n2 --> n3
  n1 --> n3
  n2 -. "3" .-> n0
  n2 -. "3" .-> n1
  n3 -. "5" .-> n1
  n3 -. "3" .-> n2
  linkStyle 4,5,6,7 stroke:#c0392b,color:#c0392b
"""


def test_the_texts_figure_is_this_mermaid_text():
    assert example().mermaid() == MERMAID


def test_dot_has_the_same_nodes_and_edges():
    dot = example().dot()
    for label in ("<B>x</B>", "∂f/∂y = 3 + 5 = 8", "v₂ = x + y", "f = v₂ · y", ">15<"):
        assert label in dot
    assert edges(dot) == [
        ("n2", "n0", "3"),
        ("n2", "n1", "3"),
        ("n3", "n1", "5"),
        ("n3", "n2", "3"),
    ]
    assert len(re.findall(r"n\d+ -> n\d+", dot)) == 8


def test_the_same_graph_is_the_same_text():
    assert example().dot() == example().dot()
    assert example().mermaid() == example().mermaid()


def test_a_negative_contribution_is_subtracted():
    assert "∂f/∂x = 2 − 1 = 1" in inspect(lambda x: x * 2.0 - x)(3.0).mermaid()


def test_random_keys_among_the_operands_are_drawn():
    def f(x):
        return x * jax.random.uniform(jax.random.key(0))

    assert "random" in inspect(f)(1.0).dot()


def test_a_loop_is_a_cycle_and_relu_one_node():
    dot = inspect(recurrent, argnums=(0, 1))(jnp.eye(2), jnp.ones((3, 2))).dot()
    assert "relu(v" in dot
    assert "select" not in dot
    assert "f32[2] ×3" in dot
    relu, product = (re.search(rf"(n\d+) \[label=.*= {op}", dot)[1] for op in (r"relu\(", "w @"))
    assert f"{relu} -> {product} " in dot
    assert (product, relu) in [(a, b) for a, b, _ in edges(dot)]
    assert any(b == "n1" for _, b, _ in edges(dot))  # xs, which the scan cuts into slices


def test_names_are_escaped():
    found = inspect(lambda p: p['<b> "c"'] * 2.0)({'<b> "c"': 1.0})
    assert "<b>" not in found.dot().replace("<B>", "")
    assert '"c"' not in found.mermaid()


def test_a_filter_draws_only_what_it_leaves():
    found = inspect(recurrent)(jnp.eye(2), jnp.ones((3, 2)))
    assert len(re.findall(r"n\d+\[", found.largest(2).mermaid())) == 2


def test_a_graph_too_large_for_a_picture_is_refused():
    def f(x):
        for _ in range(130):
            x = jnp.sin(x)
        return x

    with pytest.raises(ValueError, match="131 values are too many"):
        inspect(f)(1.0).mermaid()


def test_without_pygraphviz_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(ImportError, match=r'pip install "jaxbackprop\[plot\]"'):
        example().draw()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Graphviz's, where a font is missing
def test_the_svg_is_a_picture_with_the_figures_numbers():
    pytest.importorskip("pygraphviz")
    svg = example().draw()
    assert svg.lstrip().startswith("<?xml")
    for text in ("∂f/∂y = 3 + 5 = 8", "v₂ = x + y", ">15<"):
        assert text in svg
    assert svg == example().draw()
