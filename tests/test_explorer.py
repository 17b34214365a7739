"""The explorer: what it computes, reads and draws, and the page itself in a real browser."""

import contextlib
import itertools
import math
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
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

for needed in ("sklearn", "pygraphviz"):
    pytest.importorskip(needed)
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from explorer_parts import (  # noqa: E402
    chain,
    curves,
    expressions,
    four,
    graphs,
    network,
    questions,
    training,
    writing,
)
from explorer_parts.training import Choice  # noqa: E402

# Reading what is written.

POWERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def read(text: str) -> float:
    """The number that ends a text: of "∂C/∂w₁ = −0.0170", or of "5.1·10⁻⁶"."""
    digits, power = re.search(r"(−?[\d.]+)(?:·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?$", text).groups()
    return float(digits.replace("−", "-")) * 10.0 ** int((power or "0").translate(POWERS))


def lines(figure: str) -> dict[str, str]:
    """What a graph says, by name: of its wide and of its tall form, which agree."""
    wide, tall = ElementTree.fromstring(figure)
    found = [
        {
            text.get("data-line"): text.text or ""
            for text in each.iter("text")
            if text.get("data-line")
        }
        for each in (wide, tall)
    ]
    assert found[0] == found[1]
    return found[0]


def cells(figure: str, name: str) -> list[str]:
    wide = ElementTree.fromstring(figure)[0]
    return [text.text or "" for text in wide.iter("text") if text.get("data-cell") == name]


# Part 1


@pytest.mark.parametrize("outer", chain.UNARY)
@pytest.mark.parametrize("inner", chain.UNARY)
def test_the_chain_rule_holds_between_the_numbers_shown(outer, inner):
    found = chain.chain(outer, inner, 0.7)
    assert found["df/dx"] == pytest.approx(found["f′(g)"] * found["g′(x)"], rel=1e-4)


def test_the_slider_stands_at_quarters_of_pi_exactly():
    assert 2.0 in chain.PLACES
    for quarter in (-3, -2, -1, 1, 2, 3):
        shown = round(quarter * math.pi / 4, 4)
        assert shown in chain.PLACES
        assert chain.place(shown) == quarter * math.pi / 4
    assert chain.place(0.8) == 0.8
    assert chain.place_name(0.7854) == "π/4 ≈ 0.7854"
    assert chain.place_name(-2.3562) == "−3π/4 ≈ −2.3562"


@pytest.mark.parametrize("pair", chain.PAIRS)
def test_the_drawn_paths_are_the_slopes_and_their_products_and_add_up(pair):
    f = {"u · v": lambda u, v: u * v, "u + v": lambda u, v: u + v, "u² + v": lambda u, v: u**2 + v}
    x = 0.7
    to_u, to_v = jax.grad(f[pair], argnums=(0, 1))(x**2, math.sin(x))
    written = {
        "x": x,
        "u": x**2,
        "v": math.sin(x),
        "f": f[pair](x**2, math.sin(x)),
        "du/dx": 2 * x,
        "dv/dx": math.cos(x),
        "∂f/∂u": float(to_u),
        "∂f/∂v": float(to_v),
        "by u": float(to_u) * 2 * x,
        "by v": float(to_v) * math.cos(x),
    }
    written["df/dx"] = written["by u"] + written["by v"]
    found = lines(chain.paths_figure(pair, "square", "sin", x))
    for name, value in written.items():
        assert read(found[name]) == pytest.approx(value, abs=6e-5), name


# Part 2

NONSENSE = [
    *("", "(x + y", "x y", "2 + 3", "x\0", "x; y", "x := 1", "a+b+c+d+e+f", "x2", "sin2"),
    *("__import__('os').system('true')", "x.real", "[x for x in y]", "lambda x: x", "open(x)"),
    *("x if y else x", "sin(x, y)", "sin + x", "x ** 10000", "x ** y", "x ^ 0", "x ^ -10", "2 ^ x"),
    *("True * x", "'a' * x", "f * x", "f(x)", "x" + " + x" * 100),
    "(" * 50 + "x" + ")" * 51,
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
        ("2x + 3.5y", lambda x, y: 2 * x + 3.5 * y),
        ("2x^2y", lambda x, y: 2 * x**2 * y),
        ("x^-1 + y^(-2)", lambda x, y: 1 / x + 1 / y**2),
        ("(x + 1)(y + 2)", lambda x, y: (x + 1) * (y + 2)),
        ("x(y + 1) + 2 sin(x)cos(y)", lambda x, y: x * (y + 1) + 2 * np.sin(x) * np.cos(y)),
        ("1e-1x + 2e1 y", lambda x, y: 0.1 * x + 20 * y),
    ],
)
def test_an_expression_is_the_function_it_says(text, reference):
    parsed = expressions.parse(text)
    assert parsed.names == ("x", "y")
    assert float(parsed.function(1.5, 2.0)) == pytest.approx(reference(1.5, 2.0), rel=1e-5)


def test_the_graph_says_what_the_text_says():
    found = lines(graphs.figure("(x + y) * y", (2.0, 3.0), 8))
    assert {"v₁ = x + y", "f = v₁ · y"} < set(found)
    for name, written in (("∂f/∂x", "3"), ("∂f/∂y", "3 + 5 = 8"), ("∂f/∂v₁", "3"), ("∂f/∂f", "1")):
        assert found[name] == f"{name} = {written}"
    assert (found["2 to 0"], found["2 to 1"], found["3 to 1"], found["3 to 2"]) == (
        "3",
        "3",
        "5",
        "3",
    )


def test_the_graph_names_functions_as_they_were_typed():
    found = " ".join(lines(graphs.figure("sigmoid(2x) + x^-1 - tanh(y)", (2.0, 3.0), 0)))
    for formula in ("v₁ = 2 · x", "v₂ = sigmoid(v₁)", "v₃ = x⁻¹", "tanh(y)"):
        assert formula in found


@pytest.mark.parametrize("text", ["(x + y) * y", "relu(x)^2 - x/y + 0*y", "sqrt(x) + log(x)", "x"])
def test_the_graph_is_revealed_forward_and_then_backward_wherever_its_values_are(text):
    schedule = graphs.schedule(text)
    steps = [*schedule.seen.values(), *schedule.back.values()]
    assert sorted(steps) == list(range(1, schedule.last + 1))
    assert max(schedule.seen.values()) < min(schedule.back.values())
    names = len(expressions.parse(text).names)
    for values in ((2.0, 3.0)[:names], (-1.0, 0.0)[:names]):
        shown = [set(lines(graphs.figure(text, values, step))) for step in range(schedule.last + 1)]
        assert all(a <= b for a, b in itertools.pairwise(shown))
        assert not any(name.startswith("∂") for name in shown[0])


def test_the_table_of_gradients_is_autodiffs():
    text, values = "sin(x * y) + y^2 - x/y", (0.5, 1.5)
    expected = jax.grad(lambda x, y: jnp.sin(x * y) + y**2 - x / y, argnums=(0, 1))(*values)
    table = ElementTree.fromstring(graphs.table(text, values, graphs.schedule(text).last))
    shown = [row.findall("td")[-1].text for row in table.findall("tr")[1:]]
    assert [read(each) for each in shown] == pytest.approx([*map(float, expected)], abs=6e-5)


# Parts 3 and 4


def test_the_shapes_of_the_equations_are_the_texts():
    found = {name: re.findall(r"(\d) × (\d)", line) for name, line in four.shapes().items()}
    written = {
        "output_error": "25 25 25",
        "hidden_error": "24 25 45 45",
        "weight_gradient": "45 35 43",
        "bias_gradient": "45 41",
    }
    assert found == {name: [tuple(pair) for pair in line.split()] for name, line in written.items()}


def by_the_chain_rule(x, w1, b1, w2, b2, y) -> dict[str, float]:
    """The text's two neurons, in plain arithmetic."""
    z1 = w1 * x + b1
    a1 = 1 / (1 + math.exp(-z1))
    z2 = w2 * a1 + b2
    a2 = 1 / (1 + math.exp(-z2))
    delta2 = (a2 - y) * a2 * (1 - a2)
    delta1 = w2 * delta2 * a1 * (1 - a1)
    ahead = {"z₁": z1, "a₁": a1, "z₂": z2, "a₂": a2, "C": (a2 - y) ** 2 / 2}
    output = {"∂C/∂a₂": a2 - y, "σ′(z₂)": a2 * (1 - a2), "δ₂": delta2}
    second = {"∂C/∂w₂": delta2 * a1, "∂C/∂b₂": delta2}
    hidden = {"∂C/∂a₁": w2 * delta2, "σ′(z₁)": a1 * (1 - a1), "δ₁": delta1}
    return ahead | output | second | hidden | {"∂C/∂b₁": delta1, "∂C/∂w₁": delta1 * x}


def test_the_network_is_drawn_with_the_texts_numbers_one_step_at_a_time():
    expected = by_the_chain_rule(*network.SCALAR.values())
    walk = network.scalar("sigmoid", network.SCALAR)
    assert [step.symbol for step in walk.steps] == list(expected)
    given = {"x", "w₁", "b₁", "w₂", "b₂", "y"}
    for step in range(network.LAST + 1):
        found = lines(network.figure("scalar", walk, step))
        assert set(found) & set(expected) == set(list(expected)[:step])
        assert given < set(found)
    for symbol, value in (expected | network.SCALAR).items():
        assert read(found[symbol]) == pytest.approx(value, abs=6e-5), symbol


def test_the_same_figure_in_matrices_has_autodiffs_gradients():
    for activation in network.HIDDEN:
        walk, apart = network.matrices(activation, 3)
        assert apart < 1e-6
    figure = network.figure("matrices", walk, network.LAST)
    (x, y, W1, b1, W2, b2), σ = (walk.given[s] for s in ("x", "y", "W¹", "b¹", "W²", "b²")), jax.nn

    def cost(layers, z1=0.0, z2=0.0):
        (W1, b1), (W2, b2) = layers
        a1 = σ.gelu(W1 @ x + b1 + z1, approximate=False)
        return 0.5 * jnp.sum((σ.sigmoid(W2 @ a1 + b2 + z2) - y) ** 2)

    zeros = jnp.zeros((4, 5)), jnp.zeros((2, 5))
    layers, delta1, delta2 = jax.grad(cost, argnums=(0, 1, 2))(((W1, b1), (W2, b2)), *zeros)
    expected = {"∂C/∂W¹": layers[0][0] / 5, "∂C/∂b¹": layers[0][1] / 5, "δ¹": delta1}
    expected |= {"∂C/∂W²": layers[1][0] / 5, "∂C/∂b²": layers[1][1] / 5, "δ²": delta2, "x": x}
    for name, array in expected.items():
        shown = np.reshape([read(cell) for cell in cells(figure, name)], np.shape(array))
        np.testing.assert_allclose(shown, array, atol=6e-3)
    assert "−0.00" not in figure
    for axis in ("neurons", "examples", "inputs"):
        assert f">{axis}</text>" in figure


# Part 5

VANISHING = Choice("moons", "sigmoid", "xavier", 8, 0.3)
DEAD = Choice("moons", "relu", "normal", 3, 10.0)


def test_what_the_words_promise_is_there_to_see():
    errors = training.train(VANISHING).errors
    assert (errors[:, 0] < errors[:, -1] / 1000).all()
    assert training.train(VANISHING).cost[-1] > 0.69  # as good as guessing
    assert re.search(r"‖δ¹‖ is .*10⁻⁵ times the output's", " ".join(training.words(VANISHING, 0)))
    for rate in (3.0, 10.0):
        assert training.train(Choice("moons", "relu", "xavier", 3, rate)).dead[-1].max() > 0


def test_the_errors_at_the_start_are_those_of_plain_arithmetic():
    a, y = training.points("moons")
    layers = jax.tree.map(lambda leaf: leaf[0], training.train(VANISHING).params)
    for W, b in layers:
        a = 1 / (1 + np.exp(-(W @ a + b)))
    expected = np.sqrt(np.mean(np.square(a - y)))
    assert training.train(VANISHING).errors[0, -1] == pytest.approx(expected, rel=1e-4)


def test_errors_that_are_0_are_a_gap_and_a_word():
    run = training.train(DEAD)
    gone = np.flatnonzero((run.errors == 0).any(1))
    assert gone.size, "choose another network"
    words = " ".join(training.words(DEAD, training.STEPS - 1))
    assert "δ is exactly 0 in layer" in words
    assert f"began at step {gone[0]}." in words
    assert "10⁻¹²" not in curves.errors(DEAD, 0) + training.table(DEAD, training.STEPS - 1)


def test_a_diverged_run_says_so():
    choice = Choice("moons", "relu", "normal", 8, 10.0)
    assert "diverged" in " ".join(training.words(choice, training.STEPS - 1))


# Part 6


def test_answers_are_judged_to_three_digits_and_fractions_are_numbers():
    for given in ("1.08", "1,0806", " 1.0806 ", "108/100", "2.16/2"):
        assert questions.verdict(given, 2 * math.cos(1.0)).startswith("right")
    assert questions.verdict("−1/8", -0.125) == "right: −0.1250"
    assert questions.verdict("2", 1.08) == "not yet"
    assert questions.verdict("", 1.08) == ""
    for given in ("two", "1/0", "1/2/3", "nan", "1e999999"):
        assert "right" not in questions.verdict(given, 1.08)


def test_the_answers_are_the_texts():
    by_hand = [
        *(
            2 * math.cos(1),
            math.pi / 2 * math.sqrt(0.5) + math.pi**2 / 16 * math.sqrt(0.5),
            8,
            1 / 4,
        ),
        *(-0.01698, 22028, 1 / 64, -0.1, -0.8, 0.1, 0.5, 0, 1, 52, 7 / 4, 6),
    ]
    found = [question.answer for question in questions.questions()]
    assert found == pytest.approx(by_hand, rel=1e-3)


def test_no_hint_holds_an_answer():
    words = {"one": "1", "two": "2", "half": "1/2", "zero": "0", "nothing": "0", "six": "6"}
    for question in questions.questions():
        said = re.findall(r"[-−]?[\d.,/]*\d", question.hint)
        said += [words[w] for w in re.findall(r"\w+", question.hint.lower()) if w in words]
        for number in said:
            assert not question.judge(number).startswith("right"), question


def test_numbers_have_a_minus_no_negative_zero_and_no_hidden_digits():
    assert writing.number(-0.0) == writing.number(0.0) == "0.0000"
    assert writing.number(-0.034) == "−0.0340"
    assert writing.number(-5.12e-6) == "−5.1·10⁻⁶"
    assert writing.number(math.nan) == "undefined"
    assert writing.number(-math.inf) == "−∞"


# The page itself.

CHROMIUM = shutil.which("chromium")
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
WAIT = 60_000
SHOTS = os.environ.get("EXPLORER_SCREENSHOTS")  # a folder: also write the pictures of docs


@pytest.fixture(scope="module")
def address():
    """A running explorer."""
    pytest.importorskip("marimo")
    pytest.importorskip("anywidget")
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
def opened(chromium, address, width=1280, height=900, **options):
    """The page with every figure drawn; no foreign request and no console error until it closes."""
    page = chromium.new_page(viewport={"width": width, "height": height}, **options)
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
    page.wait_for_selector(".question")
    yield page
    page.close()
    assert hosts <= {"127.0.0.1", None, ""}
    assert errors == []


def shown(page, table, row, value):
    """Wait until a row's last cell is this number, as the page writes it."""
    text = value if isinstance(value, str) else writing.number(value)
    cell = page.locator(f'[data-table="{table}"] tr[data-row="{row}"] td').last
    cell.filter(has_text=re.compile(f"^{re.escape(text)}$")).wait_for()


def drawn(page, figure) -> dict[str, str]:
    """What the figure that is visible says, by name."""
    texts = page.locator(f'[data-figure="{figure}"] [data-line]:visible')
    pairs = texts.evaluate_all("all => all.map(e => [e.dataset.line, e.textContent])")
    return dict(pairs)


def press(page, label, key, times=1):
    thumb = page.get_by_role("slider", name=label, exact=True)
    thumb.focus()
    for _ in range(times):
        thumb.press(key)


def stands_at(page, figure, step):
    page.locator(f'[data-figure="{figure}"][aria-label*="step {step}"]').wait_for()


@pytest.fixture(scope="module")
def page(chromium, address):
    """One page for the tests below: each leaves it with other settings, and none minds."""
    with opened(chromium, address) as page:
        yield page


class TestPage:
    pytestmark = BROWSER

    def test_every_figure_has_words_and_every_control_a_name(self, page):
        for name in ("chain", "paths", "flow", "scalar", "matrices", "boundary", "errors"):
            found = page.locator(f'[data-figure="{name}"]')
            found.locator("svg").first.wait_for()
            assert len(found.get_attribute("aria-label") or "") > 20
        for role in ("slider", "combobox", "textbox"):
            controls = page.get_by_role(role)
            named = page.get_by_role(role, name=re.compile(r"\S"))
            assert controls.count() == named.count() > 0

    def test_part_1_begins_at_2_and_reaches_a_quarter_of_pi(self, page):
        for row, value in chain.chain("sin", "square", 2.0).items():
            shown(page, "chain", row, value)
        back = chain.PLACES.index(2.0) - chain.PLACES.index(0.7854)
        press(page, "x of the chain", "ArrowLeft", back)
        for row, value in chain.chain("sin", "square", math.pi / 4).items():
            shown(page, "chain", row, value)
        press(page, "x of both paths", "ArrowLeft", back)
        found = chain.paths("u · v", "square", "sin", math.pi / 4)
        shown(page, "paths", "df/dx", found.total)
        said = drawn(page, "paths")
        assert read(said["∂f/∂u"]) == pytest.approx(math.sqrt(0.5), abs=6e-5)
        assert read(said["du/dx"]) == pytest.approx(math.pi / 2, abs=6e-5)
        assert read(said["by v"]) == pytest.approx(found.by_v, abs=6e-5)

    def test_part_2_draws_what_is_typed_and_keeps_its_step(self, page):
        shown(page, "flow", "∂f/∂y", 8.0)
        press(page, "step of the passes", "Home")
        press(page, "step of the passes", "ArrowRight", 6)
        stands_at(page, "flow", 6)
        shown(page, "flow", "∂f/∂y", "?")
        press(page, "value of x", "ArrowRight", 10)
        page.locator('[data-figure="flow"]:has-text("18")').wait_for()
        stands_at(page, "flow", 6)
        assert drawn(page, "flow")["∂f/∂v₁"] == "∂f/∂v₁ = 3"
        box = page.get_by_role("textbox", name="f =", exact=True)
        box.fill("x * open(y)")
        page.get_by_role("alert").filter(has_text="open is not known here").wait_for()
        box.fill("sigmoid(2x) + z^-1")
        shown(page, "flow", "∂f/∂z", "−0.1111")
        assert drawn(page, "flow")["v₂ = sigmoid(v₁)"] == "v₂ = sigmoid(v₁)"

    def test_an_equation_opens_to_the_code_of_the_library(self, page):
        page.get_by_role("button", name=re.compile("BP2")).press("Enter")
        code = page.get_by_text("(W_next.T @ delta_next) * sigma_prime")
        code.filter(visible=True).first.wait_for()

    def test_part_4_draws_the_network_keeps_its_step_and_plays(self, page):
        stepper = page.locator(".stepper").nth(1)
        press(page, "step of the network", "Home")
        stands_at(page, "scalar", 0)
        press(page, "step of the network", "ArrowRight", 8)
        stands_at(page, "scalar", 8)
        press(page, "weight w₂", "ArrowLeft", 4)
        expected = by_the_chain_rule(*(network.SCALAR | {"w₂": 0.8}).values())
        shown(page, "steps", "δ₂", expected["δ₂"])
        stands_at(page, "scalar", 8)
        said = drawn(page, "scalar")
        assert set(said) & set(expected) == set(list(expected)[:8])
        for symbol in list(expected)[:8]:
            assert read(said[symbol]) == pytest.approx(expected[symbol], abs=6e-5)
        stepper.get_by_role("button", name="step on").click()
        stands_at(page, "scalar", 9)
        stepper.get_by_role("button", name="play").click()
        stands_at(page, "scalar", 11)
        stepper.get_by_role("button", name="pause").click()
        press(page, "step of the network", "End")
        shown(page, "steps", "∂C/∂w₁", expected["∂C/∂w₁"])
        press(page, "step of the matrices", "Home")
        page.locator('[data-figure="matrices"] [data-cell="z¹"]').first.wait_for(state="detached")

    def test_part_5_says_what_it_shows(self, page):
        page.get_by_label("activation of the layers").select_option("sigmoid")
        page.get_by_label("hidden layers").select_option("8")
        run = training.train(VANISHING)
        shown(page, "training", "cost", float(run.cost[-1]))
        shown(page, "training", "‖δ‖ of layer 1", float(run.errors[-1, 0]))
        page.locator('[data-figure="words"]').filter(has_text="10⁻⁵ times").wait_for()
        press(page, "training step", "Home")
        shown(page, "training", "cost", float(run.cost[0]))
        page.locator('[data-figure="errors"] [data-step="0"]').wait_for(state="attached")

    def test_part_6_judges_an_answer_beside_its_question(self, page):
        question = page.locator(".question").filter(has_text="σ′(z) of the sigmoid")
        box = question.get_by_role("textbox")
        for given, said in (("1/3", "not yet"), ("1/4", "right: 0.2500")):
            box.fill(given)
            box.press("Tab")
            question.locator("output").filter(has_text=said).wait_for()
        assert page.evaluate("document.activeElement !== document.body")


LEAST = 8.0  # pixels of a letter that is read on a phone
OUTSIDE = """all => all.filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && (box.left < 0 || box.right > window.innerWidth);
}).map(e => e.outerHTML.slice(0, 100))"""
TOO_SMALL = """(all, least) => all.filter(e => e.getBoundingClientRect().width).filter(e =>
    parseFloat(getComputedStyle(e).fontSize) * e.getCTM().a < least).map(e => e.textContent)"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_on_a_phone_nothing_is_cut_off_and_the_dark_theme_is_followed(chromium, address):
    with opened(chromium, address, 390, 844, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        seen = page.locator(
            "[data-figure] rect, [data-figure] text, [data-table] td, button, input"
        )
        assert seen.evaluate_all(OUTSIDE) == []
        texts = page.locator("[data-figure] text:not(.axis)")
        assert texts.evaluate_all(TOO_SMALL, LEAST) == []
        assert "−0.00" not in [text for text in texts.all_text_contents() if len(text) == 5]
        color = page.locator('[data-figure="scalar"] text.on:visible').first.evaluate(
            "e => getComputedStyle(e).fill"
        )
        assert min(map(int, re.findall(r"\d+", color)[:3])) > 150


PICTURES = {  # what a picture shows: from a heading to the end of a figure's cell
    "chain": ("1 ·", "chain"),
    "paths": ("Two paths", "paths"),
    "flow": ("2 ·", "flow"),
    "network": ("4 ·", "scalar"),
    "matrices": ("The same in matrices", "matrices"),
    "train": ("5 ·", "errors"),
}


@pytest.mark.skipif(SHOTS is None, reason="EXPLORER_SCREENSHOTS names no folder")
@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "theme", "ending"),
    [(1280, "light", ""), (390, "light", "_phone"), (1280, "dark", "_dark")],
)
def test_the_pictures_of_the_docs_are_taken(chromium, address, width, theme, ending):
    """EXPLORER_SCREENSHOTS=docs pytest tests/test_explorer.py -n0 -k picture -s"""
    with opened(chromium, address, width, 900, color_scheme=theme) as page:
        page.set_viewport_size({"width": width, "height": 12_000})
        for name, (heading, figure) in PICTURES.items():
            if theme == "dark" and name != "network":
                continue
            top = page.get_by_role("heading", name=heading).first.bounding_box()["y"]
            cell = page.locator(f'[data-figure="{figure}"]').locator(
                "xpath=ancestor::*[@data-cell-id or contains(@class, 'output')][1]"
            )
            box = cell.bounding_box()
            clip = {
                "x": 0,
                "y": top - 12,
                "width": width,
                "height": box["y"] + box["height"] - top + 24,
            }
            page.screenshot(path=pathlib.Path(SHOTS) / f"explorer_{name}{ending}.png", clip=clip)
        if not ending:
            _print_latencies(page)


@pytest.mark.skipif(SHOTS is None, reason="EXPLORER_SCREENSHOTS names no folder")
@pytest.mark.browser
def test_the_picture_of_the_network_alone_is_taken(chromium, address):
    """In twice its size, for pages that show it without its controls: the same command."""
    with opened(chromium, address, device_scale_factor=2) as page:
        network = page.locator('[data-figure="scalar"] svg:visible')
        network.screenshot(path=pathlib.Path(SHOTS) / "network.png")


def _print_latencies(page):
    for label, table, row, key in (
        ("x of the chain", "chain", "df/dx", "ArrowRight"),
        ("value of x", "flow", "∂f/∂y", "ArrowRight"),
        ("weight w₁", "steps", "z₁", "ArrowRight"),
        ("training step", "training", "cost", "PageDown"),
        ("learning rate", "training", "cost", "ArrowLeft"),
        ("training step", "training", "cost", "PageUp"),
        ("learning rate", "training", "cost", "ArrowRight"),
    ):
        if key == "PageUp":
            page.get_by_label("hidden layers").select_option(str(max(training.DEPTHS)))
            page.locator('[data-row="‖δ‖ of layer 8"]').wait_for()
            print("in the deepest network that there is:")
        print(f"{label}: {1000 * _latency(page, table, row, label, key):.0f} ms")


def _latency(page, table, row, label, key):
    """The median time in seconds from a key to the change of a number."""
    times = []
    for _ in range(3):
        cell = page.locator(f'[data-table="{table}"] tr[data-row="{row}"] td').last
        before = cell.inner_text()
        page.get_by_role("slider", name=label, exact=True).focus()
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
