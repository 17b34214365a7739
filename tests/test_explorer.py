"""The explorer: what it computes and reads, and the page itself in a real browser."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest

pytest.importorskip("sklearn")
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from explorer_parts import expressions, numbers, pictures  # noqa: E402

NONSENSE = [
    "",
    "(x + y",
    "x y",
    "2 + 3",
    "__import__('os').system('true')",
    "x.real",
    "[x for x in y]",
    "lambda x: x",
    "x if y else x",
    "open(x)",
    "sin(x, y)",
    "sin + x",
    "x ** 10000",
    "x ** y",
    "x ** -1",
    "True * x",
    "1j * x",
    "'a' * x",
    "a+b+c+d+e+f",
    "(" * 50 + "x" + ")" * 51,
    "x" + " + x" * 100,
    "x\0",
    "x; y",
    "x := 1",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_gets_a_sentence(text):
    with pytest.raises(ValueError, match=r"^[A-Za-z].*[.?]$"):
        expressions.parse(text)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("(x + y) * y", lambda x, y: (x + y) * y),
        ("sin(x)^2 / y - 3", lambda x, y: np.sin(x) ** 2 / y - 3),
        ("-exp(x) + sqrt(y) * log(y)", lambda x, y: -np.exp(x) + np.sqrt(y) * np.log(y)),
        ("tanh(x*y) − relu(-x)·y", lambda x, y: np.tanh(x * y) - max(-x, 0) * y),
    ],
)
def test_an_expression_is_the_function_it_says(text, reference):
    parsed = expressions.parse(text)
    assert parsed.names == ("x", "y")
    assert float(parsed.function(1.5, 2.0)) == pytest.approx(reference(1.5, 2.0), rel=1e-5)


@pytest.mark.parametrize("outer", numbers.UNARY)
@pytest.mark.parametrize("inner", numbers.UNARY)
def test_the_chain_rule_holds_between_the_numbers_shown(outer, inner):
    found = numbers.chain(outer, inner, 0.7)
    assert found["df/dx"] == pytest.approx(found["f′(g)"] * found["g′(x)"], rel=1e-4)


def test_both_paths_add_to_the_slope():
    for pair in numbers.PAIRS:
        found = numbers.paths(pair, "square", "sin", 0.7)
        total = found["∂f/∂u · du/dx"] + found["∂f/∂v · dv/dx"]
        assert found["df/dx"] == pytest.approx(total, rel=1e-5)


def test_the_paths_of_the_graph_are_three_and_five():
    rows = pictures.contributions("(x + y) * y", (2.0, 3.0))
    assert rows[0] == ("∂f/∂x", "3", "3.0000")
    assert sorted(rows[1][1].split(" + ")) == ["3", "5"]
    assert rows[1][2] == "8.0000"


def test_the_steps_are_the_texts_numbers():
    found = {
        symbol: value for symbol, _, value in numbers.scalar_network("sigmoid", numbers.SCALAR)
    }
    written = {"z₁": 0.2, "a₁": 0.55, "C": 0.1059, "δ₂": -0.1143, "δ₁": -0.034, "∂C/∂w₁": -0.017}
    for symbol, value in written.items():
        assert found[symbol] == pytest.approx(value, abs=6e-4 if symbol == "a₁" else 6e-5)


def test_the_equations_and_autodiff_agree_on_the_matrix_network():
    for activation in numbers.HIDDEN:
        found = numbers.matrix_network(activation, 3)
        for manual, automatic in zip(found.manual, found.automatic, strict=True):
            np.testing.assert_allclose(manual, automatic, rtol=1e-4, atol=1e-7)


def test_the_shapes_of_the_equations_are_the_texts():
    found = {name: re.findall(r"(\d) × (\d)", line) for name, line in numbers.shapes().items()}
    written = {
        "output_error": "25 25 25",
        "hidden_error": "24 25 45 45",
        "weight_gradient": "45 35 43",
        "bias_gradient": "45 41",
    }
    assert found == {name: [tuple(pair) for pair in line.split()] for name, line in written.items()}


def test_one_program_trains_every_activation():
    before = numbers._descend._cache_size()
    costs = [numbers.train("moons", each, "xavier", 0.3).cost for each in numbers.HIDDEN]
    assert numbers._descend._cache_size() <= before + 1
    assert all(cost[-1] < cost[0] for cost in costs)


def test_sigmoids_vanish_and_high_rates_kill_relus():
    norms = numbers.train("moons", "sigmoid", "xavier", 0.1).norms[0]
    assert norms[0] < norms[-1] / 10
    assert numbers.train("moons", "relu", "normal", 10.0).dead[-1].max() > 0.5


def test_answers_are_judged_to_three_digits():
    (question, *_) = numbers.questions()
    assert question.answer == pytest.approx(2 * np.cos(1.0), rel=1e-5)
    assert numbers.verdict("1.08", question.answer).startswith("right")
    assert numbers.verdict("1,0806", question.answer).startswith("right")
    assert numbers.verdict("2", question.answer).startswith("not yet")
    assert numbers.verdict("two", question.answer).startswith("write a number")


def test_a_graph_is_revealed_forward_and_then_backward():
    pytest.importorskip("pygraphviz")
    forward, backward = pictures.schedule("(x + y) * y", (2.0, 3.0))
    assert forward == sorted(forward)
    assert backward == sorted(forward, reverse=True)
    hidden = [
        pictures.flow("(x + y) * y", (2.0, 3.0), step).count('opacity="0')
        for step in range(len(forward) + len(backward) + 1)
    ]
    assert hidden == sorted(hidden, reverse=True)
    assert hidden[0] > 0 == hidden[-1]


# The page itself.

CHROMIUM = shutil.which("chromium")
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
WAIT = 60_000
SHOTS = os.environ.get("EXPLORER_SCREENSHOTS")  # a folder: also write the README's pictures


@pytest.fixture(scope="module")
def address():
    """A running explorer."""
    pytest.importorskip("marimo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "run", "explorer.py", "--headless", "--no-token"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        cwd=ROOT / "scripts",
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url + "/health", timeout=1).close()
                break
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield launched
    launched.close()
    playwright.stop()


@contextlib.contextmanager
def opened(chromium, address, width=1100, height=900):
    """The page with every figure drawn; no foreign request and no console error until it closes."""
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(WAIT)
    hosts, errors = set(), []
    page.on("request", lambda request: hosts.add(urllib.parse.urlsplit(request.url).hostname))
    page.on("websocket", lambda socket: hosts.add(urllib.parse.urlsplit(socket.url).hostname))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_selector('[data-figure="chain"] svg')
    print(f"first figure after {time.perf_counter() - began:.1f} s")
    page.wait_for_selector('[data-table="answers"]')
    yield page
    page.close()
    assert hosts <= {"127.0.0.1", None, ""}
    assert errors == []


def shown(page, table, row, text):
    """Wait until a row's last cell is this text."""
    cell = page.locator(f'[data-table="{table}"] tr[data-row="{row}"] td').last
    cell.filter(has_text=text).wait_for()


def slider(page, label):
    return page.get_by_role("slider", name=label, exact=True)


def press(page, label, key, times=1):
    thumb = slider(page, label)
    thumb.focus()
    for _ in range(times):
        thumb.press(key)


@pytest.fixture(scope="module")
def page(chromium, address):
    """One page for the tests below: each leaves it with other settings, and none minds."""
    with opened(chromium, address) as page:
        yield page


class TestPage:
    pytestmark = BROWSER

    def test_every_figure_appears_and_has_words_for_those_who_cannot_see_it(self, page):
        for name in ("chain", "flow", "deltas", "gradients", "training"):
            found = page.locator(f'[data-figure="{name}"]')
            found.locator("svg").first.wait_for()
            assert len(found.get_attribute("aria-label") or "") > 20

    def test_every_control_has_a_name(self, page):
        for role in ("slider", "combobox", "textbox"):
            controls = page.get_by_role(role)
            named = page.get_by_role(role, name=re.compile(r"\w"))
            assert controls.count() == named.count() > 0

    def test_arrow_keys_move_the_chain_rule_to_the_librarys_numbers(self, page):
        press(page, "x of the chain", "ArrowRight", 4)
        for row, value in numbers.chain("sin", "square", 1.2).items():
            shown(page, "chain", row, f"{value:.4f}")
        page.get_by_label("outer function f").select_option("exp")
        for row, value in numbers.chain("exp", "square", 1.2).items():
            shown(page, "chain", row, f"{value:.4f}")

    def test_paths_add_on_the_page(self, page):
        press(page, "x of both paths", "Home")
        for row, value in numbers.paths("u · v", "square", "sin", -3.0).items():
            shown(page, "paths", row, f"{value:.4f}")

    def test_a_typed_expression_is_drawn_and_nonsense_gets_a_sentence(self, page):
        shown(page, "flow", "∂f/∂y", "8.0000")
        press(page, "value of x", "ArrowRight", 10)
        shown(page, "flow", "∂f/∂y", "9.0000")
        page.get_by_role("textbox", name="f =", exact=True).fill("x * open(y)")
        page.get_by_role("alert").filter(has_text="open is not known here").wait_for()
        page.get_by_role("textbox", name="f =", exact=True).fill("sin(x * y) + z^2")
        slope = pictures.contributions("sin(x * y) + z^2", (2.0, 3.0, 1.0))[0][2]
        shown(page, "flow", "∂f/∂x", slope)
        press(page, "step of the passes", "Home")
        page.locator('[data-figure="flow"][aria-label$="step 0"]').wait_for()

    def test_an_equation_opens_to_the_code_of_the_library(self, page):
        page.get_by_role("button", name=re.compile("BP2")).press("Enter")
        code = page.get_by_text("(W_next.T @ delta_next) * sigma_prime")
        code.filter(visible=True).first.wait_for()

    def test_the_scalar_network_steps_through_the_librarys_numbers(self, page):
        shown(page, "steps", "∂C/∂w₁", "-0.0170")
        press(page, "neuron w₂", "ArrowLeft", 4)
        page.get_by_label("activation σ").select_option("tanh")
        for row, _, value in numbers.scalar_network("tanh", numbers.SCALAR | {"w₂": 0.8}):
            shown(page, "steps", row, f"{value:.4f}")
        press(page, "steps shown", "Home")
        page.locator('[data-table="steps"] tr').nth(1).wait_for(state="detached")
        assert page.locator('[data-table="steps"] tr').count() == 1

    def test_the_trained_networks_cost_is_the_librarys(self, page):
        page.get_by_label("activation of the layers").select_option("relu")
        run = numbers.train("moons", "relu", "xavier", 0.3)
        shown(page, "training", "cost", f"{run.cost[-1]:.4f}")
        press(page, "training step", "Home")
        shown(page, "training", "cost", f"{run.cost[0]:.4f}")

    def test_an_answer_is_judged(self, page):
        box = page.get_by_label(re.compile("∂f/∂y of f"))
        box.fill("8")
        box.press("Enter")
        shown(page, "answers", "Question 2", "right: 8.0000")

    def test_it_fits_a_phone(self, page):
        page.set_viewport_size({"width": 390, "height": 844})
        page.locator('[data-figure="chain"] svg').wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for svg in page.locator('[data-figure="chain"] svg, [data-figure="training"] svg').all():
            assert svg.bounding_box()["width"] <= 390


@pytest.mark.skipif(SHOTS is None, reason="EXPLORER_SCREENSHOTS names no folder")
@pytest.mark.browser
def test_the_readmes_pictures_are_taken(chromium, address):
    """EXPLORER_SCREENSHOTS=docs pytest tests/test_explorer.py -n0 -k pictures -s"""
    with opened(chromium, address, 860, 640) as page:
        for name, heading in (
            ("chain", "chain rule"),
            ("flow", "flow back"),
            ("train", "Train and"),
        ):
            page.get_by_role("heading", name=heading, level=2).evaluate("e => e.scrollIntoView()")
            page.screenshot(path=pathlib.Path(SHOTS) / f"explorer_{name}.png")
        for label, row, key in (
            ("x of the chain", "df/dx", "ArrowRight"),
            ("neuron x", "z₁", "ArrowRight"),
            ("training step", "cost", "PageDown"),
            ("learning rate", "cost", "ArrowLeft"),
        ):
            table = {"df/dx": "chain", "z₁": "steps"}.get(row, "training")
            print(f"{label}: {1000 * _latency(page, table, row, label, key):.0f} ms")


def _latency(page, table, row, label, key):
    """The median time in seconds from a key to the change of a number."""
    times = []
    for _ in range(3):
        cell = page.locator(f'[data-table="{table}"] tr[data-row="{row}"] td').last
        before = cell.inner_text()
        slider(page, label).focus()
        began = time.perf_counter()
        page.keyboard.press(key)
        page.wait_for_function(
            """([table, row, before]) => {
                const cells = document.querySelectorAll(
                    `[data-table="${table}"] tr[data-row="${row}"] td`);
                return cells.length && cells[cells.length - 1].innerText !== before;
            }""",
            arg=[table, row, before],
        )
        times.append(time.perf_counter() - began)
    return sorted(times)[1]
