"""The package as such: what `import jaxbackprop` brings, and what `python -m jaxbackprop` says."""

import ast
import builtins
import doctest
import importlib
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import jaxtyping
import pytest

import jaxbackprop
from jaxbackprop import equations, selfcheck

ROOT = pathlib.Path(__file__).parents[1]
LOOK = """
import json, sys
import jaxbackprop
before = [name for name in sys.modules if name.startswith("jaxbackprop.")]
everything = {name: repr(type(getattr(jaxbackprop, name))) for name in jaxbackprop.__all__}
print(json.dumps([before, everything]))
"""


def test_the_package_begins_small_and_has_all_that_it_names():
    """What is not asked for is not imported: the time of import jax is what one waits for."""
    said = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    before, everything = json.loads(said.stdout)
    rooms = {name.split(".")[1] for name in before}
    assert not rooms & {"graph", "check", "flow", "per_example", "training", "devices", "selfcheck"}
    assert set(everything) == set(jaxbackprop.__all__)
    assert set(everything) <= set(dir(jaxbackprop))


def test_every_module_with_shapes_has_them_checked(pytestconfig):
    """And a module of which that is not so would be seen."""
    checked = pytestconfig.getini("addopts")
    (listed,) = (option for option in checked if option.startswith("--jaxtyping-packages="))
    packages = listed.removeprefix("--jaxtyping-packages=").split(",")[:-1]
    shaped = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "jaxbackprop").rglob("*.py")
        if re.search(r"^from jaxtyping import .*Array", path.read_text(), re.MULTILINE)
    ]
    assert "jaxbackprop.equations" in shaped

    def unchecked(packages):
        roots = tuple(f"{name}." for name in packages)
        return [name for name in shaped if not f"{name}.".startswith(roots)]

    assert unchecked(packages) == []
    assert unchecked(packages[1:]) == ["jaxbackprop.equations"]


def test_a_wrong_shape_is_refused_while_the_suite_runs():
    with pytest.raises(jaxtyping.TypeCheckError, match="a_prev"):
        equations.weight_gradient(jnp.ones((2, 3)), jnp.ones((2, 4)))


def test_the_version_is_that_of_the_distribution():
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxbackprop.__version__)
    try:
        installed = importlib.metadata.version("jaxbackprop")
    except importlib.metadata.PackageNotFoundError:
        return
    assert installed == jaxbackprop.__version__


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("train", "optax", "train"), ("saving", "orbax", "train"), ("plots", "matplotlib", "plot")],
)
def test_a_missing_extra_is_named(name, missing, extra, monkeypatch):
    real = builtins.__import__

    def without(module, *rest, **options):
        if module.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(module, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, f"jaxbackprop.training.{name}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}: pip install .*\[{extra}\]"):
        jaxbackprop.__getattr__(name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'gradient'"):
        _ = jaxbackprop.gradient


def test_the_self_check_holds_here(capsys):
    assert selfcheck.main() == 0
    said = capsys.readouterr().out
    assert said.count(" holds ") == len(selfcheck.CHECKS)
    assert f"jaxbackprop {jaxbackprop.__version__}, jax " in said


def of_no_product(W_next, delta_next, sigma_prime):
    return (jnp.abs(W_next).T @ delta_next) * sigma_prime


def of_nothing(*_):
    raise ZeroDivisionError("planted")


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        ("jaxbackprop.backprop", "hidden_error", of_no_product),
        ("jaxbackprop.backprop", "hidden_error", of_nothing),
        ("jaxbackprop.selfcheck", "value_and_grad", lambda f: lambda *a: (f(*a), a[0])),
    ],
)
def test_the_self_check_fails_with_a_fault_and_says_so(where, name, fault, monkeypatch, capsys):
    """Every line of that pass does, also where products and numbers are coarse."""
    monkeypatch.setattr(importlib.import_module(where), name, fault)
    other = ("bytes", "activation kept")  # a pass of its own
    checks = {n: c for n, c in selfcheck.CHECKS.items() if not any(word in n for word in other)}
    monkeypatch.setattr(selfcheck, "CHECKS", checks)
    assert selfcheck.main() == 1
    wing = "backprop: " if name == "hidden_error" else "value_and_grad: "
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(wing)]
    assert len(lines) >= 2
    assert all(" FAILS " in line for line in lines), lines


@pytest.mark.parametrize("size", [1e-3, float("nan"), float("inf")])
def test_the_gate_of_the_self_check_refuses(size):
    good = {"W": jnp.ones((3, 3)), "b": jnp.zeros(3)}
    assert selfcheck.agree(good, good, 4) == (True, "0 of the bound")
    assert not selfcheck.agree(good | {"W": good["W"] + size}, good, 4)[0]
    assert not selfcheck.agree(good | {"b": good["b"] + size}, good, 4)[0]


def test_the_listing_in_contributing_names_every_module_and_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listing = text.split("jaxbackprop/\n")[1].split("\ntests/")[0]
    named = {line.split()[0] for line in listing.splitlines()}
    package = ROOT / "jaxbackprop"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    rooms |= {f"{path.parent.name}/" for path in package.glob("graph/*/__init__.py")}
    assert named == modules | rooms


OF_A_NAMED_TUPLE = {"_replace", "_fields", "_asdict", "_make"}


def private_names_of_others(program):
    """What a module takes from others of the package though its name begins with _."""
    imported = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxb"):
            imported |= {alias.asname or alias.name for alias in node.names}
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            dotted = [a.name for a in node.names if a.name.startswith("jaxbackprop")]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in imported:
            dotted = [f"{node.value.id}.{node.attr}"]
        else:
            continue
        for name in dotted:
            last = [part for part in name.split(".") if re.match("_[^_]", part)]
            yield from (name for part in last if part not in OF_A_NAMED_TUPLE)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "jaxbackprop").rglob("*.py")), ids=lambda path: path.stem
)
def test_no_module_uses_what_is_private_to_another(path):
    assert list(private_names_of_others(path.read_text())) == []


@pytest.mark.parametrize(
    "program",
    [
        "from jaxbackprop.graph.walk import _local",
        "from jaxbackprop.graph._walk import local",
        "import jaxbackprop.graph._walk",
        "from jaxbackprop.graph import walk\nwalk._local()",
    ],
)
def test_a_use_of_what_is_private_would_be_seen(program):
    assert list(private_names_of_others(program))


def examples():
    """README's and the docs' examples as one Python program each."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        program = "".join(x.source for x in doctest.DocTestParser().get_examples(page.read_text()))
        if program:
            yield page.name, program


@pytest.mark.parametrize(("page", "program"), list(examples()))
def test_the_examples_are_programs(page, program):
    """That they run is tested page by page; `python tests/test_package.py FOLDER` writes them out,
    for a type checker."""
    ast.parse(program)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page, program in examples():
        (folder / f"{page.removesuffix('.md').lower()}_examples.py").write_text(program)
