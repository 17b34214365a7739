"""The notebooks run, and show the library's own numbers."""

import importlib.util
import pathlib

import jax.numpy as jnp
import pytest

pytest.importorskip("marimo")
NOTEBOOKS = pathlib.Path(__file__).parent.parent / "docs" / "notebooks"


def run(name):
    """What the cells of a notebook define."""
    spec = importlib.util.spec_from_file_location(f"notebook_{name}", NOTEBOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app.run()[1]


def test_the_four_equations_begin_with_the_texts_numbers():
    found = run("four_equations")
    assert [f"{float(delta.squeeze()):.4f}" for delta in found["deltas"]] == ["-0.0340", "-0.1143"]


def test_the_plan_is_one_for_the_bytes_of_the_slider():
    assert "asked 0.44 MiB" in run("memory")["plan"]


def test_the_origin_of_the_nan_is_the_root():
    found = run("nan")
    assert not jnp.isfinite(found["gradient"]).all()
    assert found["origin"].startswith("sqrt at ")
