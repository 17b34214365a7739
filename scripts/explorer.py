# Four figures to touch, and a network to watch, every number computed by jaxbackprop:
#
#     pip install -e ".[explorer]" && marimo run scripts/explorer.py

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="Backpropagation, by hand")


@app.cell(hide_code=True)
def _():
    import html
    import inspect as source

    import marimo as mo
    from explorer_parts import expressions, numbers, pictures

    from jaxbackprop import equations

    mo.md("""
    # Backpropagation, by hand

    Six things to touch. Every number is computed by jaxbackprop; sliders take the arrow keys.

    ## 1 · The chain rule
    """)
    return equations, expressions, html, mo, numbers, pictures, source


@app.cell(hide_code=True)
def _(mo, numbers):
    outer = mo.ui.dropdown(list(numbers.UNARY), value="sin", label="outer function f")
    inner = mo.ui.dropdown(list(numbers.UNARY), value="square", label="inner function g")
    at = mo.ui.slider(-3, 3, 0.05, value=1.0, label="x of the chain", show_value=True)
    mo.hstack([outer, inner, at], wrap=True, justify="start")
    return at, inner, outer


@app.cell(hide_code=True)
def _(at, inner, mo, numbers, outer, pictures):
    _found = numbers.chain(outer.value, inner.value, at.value)
    mo.Html(
        pictures.chain(outer.value, inner.value, at.value)
        + pictures.table("chain", [(key, f"{value:.4f}") for key, value in _found.items()])
        + "<p>df/dx is the product of the two slopes: the outer one, taken at g(x), "
        "times the inner one, taken at x.</p>"
    )
    return


@app.cell(hide_code=True)
def _(mo, numbers):
    pair = mo.ui.dropdown(list(numbers.PAIRS), value="u · v", label="f(u, v)")
    first = mo.ui.dropdown(list(numbers.UNARY), value="square", label="u(x)")
    second = mo.ui.dropdown(list(numbers.UNARY), value="sin", label="v(x)")
    both_at = mo.ui.slider(-3, 3, 0.05, value=1.0, label="x of both paths", show_value=True)
    mo.vstack(
        [
            mo.md("### Two paths: the contributions add"),
            mo.hstack([pair, first, second, both_at], wrap=True, justify="start"),
        ]
    )
    return both_at, first, pair, second


@app.cell(hide_code=True)
def _(both_at, first, mo, numbers, pair, pictures, second):
    _found = numbers.paths(pair.value, first.value, second.value, both_at.value)
    mo.Html(pictures.table("paths", [(key, f"{value:.4f}") for key, value in _found.items()]))
    return


@app.cell(hide_code=True)
def _(expressions, mo):
    typed = mo.ui.text("(x + y) * y", label="f =", debounce=300, full_width=True)
    mo.vstack(
        [
            mo.md(
                "## 2 · Gradients flow back through the graph\n\n"
                "Type an expression in single letters, with + − * / ^ and "
                f"{', '.join(expressions.FUNCTIONS)}."
            ),
            typed,
        ]
    )
    return (typed,)


@app.cell(hide_code=True)
def _(expressions, mo, typed):
    problem, expression = "", None
    try:
        expression = expressions.parse(typed.value)
    except ValueError as error:
        problem = str(error)
    letters = mo.ui.dictionary(
        {
            name: mo.ui.slider(-4, 4, 0.1, value=start, label=f"value of {name}", show_value=True)
            for name, start in zip(
                expression.names if expression else (), (2.0, 3.0, 1.0, 0.5, -1.0), strict=False
            )
        }
    )
    mo.hstack(list(letters.elements.values()), wrap=True, justify="start") if expression else None
    return expression, letters, problem


@app.cell(hide_code=True)
def _(expression, letters, mo, pictures):
    _last = 0
    if expression:
        _start = tuple(float(each) for each in letters.value.values())
        _last = sum(map(len, pictures.schedule(expression.text, _start)))
    reached = mo.ui.slider(
        0, max(_last, 1), 1, value=max(_last, 1), label="step of the passes", show_value=True
    )
    reached if expression else None
    return (reached,)


@app.cell(hide_code=True)
def _(expression, html, letters, mo, pictures, problem, reached):
    if expression:
        _values = tuple(float(each) for each in letters.value.values())
        _head = ("gradient", "what each path brings", "sum")
        _shown = mo.Html(
            pictures.flow(expression.text, _values, reached.value)
            + pictures.table("flow", pictures.contributions(expression.text, _values), _head)
        )
    else:
        _shown = mo.Html(f'<p role="alert" data-figure="problem">{html.escape(problem)}</p>')
    _shown
    return


@app.cell(hide_code=True)
def _(equations, mo, numbers, source):
    _shapes = numbers.shapes()
    _about = {
        "BP1 · δᴸ = ∇ₐC ⊙ σ′(zᴸ)": (
            equations.output_error,
            "How much the cost minds the output, times how much the output still moves.",
        ),
        "BP2 · δˡ = ((Wˡ⁺¹)ᵀ δˡ⁺¹) ⊙ σ′(zˡ)": (
            equations.hidden_error,
            "Blame runs back along the weights that carried the signal forward; a flat unit "
            "lets none of it through.",
        ),
        "BP3 · ∂C/∂Wˡ = (1/m) δˡ (aˡ⁻¹)ᵀ": (
            equations.weight_gradient,
            "A weight is to blame as far as its unit erred while its input spoke.",
        ),
        "BP4 · ∂C/∂bˡ = (1/m) Σᵢ δˡᵢ": (
            equations.bias_gradient,
            "A bias is a weight whose input is always 1: the error itself, averaged.",
        ),
    }
    _open = {
        title: mo.md(
            f"{words}\n\nShapes in a (3, 4, 2) network with five examples, layer 2's for BP1 and "
            f"layer 1's for the others: {_shapes[function.__name__]}\n\n"
            f"```python\n{source.getsource(function)}```"
        )
        for title, (function, words) in _about.items()
    }
    mo.vstack([mo.md("## 3 · The four equations"), mo.accordion(_open, multiple=True)])
    return


@app.cell(hide_code=True)
def _(mo, numbers):
    settings = mo.ui.dictionary(
        {
            name: mo.ui.slider(-3, 3, 0.1, value=value, label=f"neuron {name}", show_value=True)
            for name, value in numbers.SCALAR.items()
        }
    )
    sigma = mo.ui.dropdown(list(numbers.HIDDEN), value="sigmoid", label="activation σ")
    done = mo.ui.slider(1, 15, 1, value=15, label="steps shown", show_value=True)
    mo.vstack(
        [
            mo.md("## 4 · Step by step\n\nTwo layers of one neuron: x → a₁ → a₂ → C."),
            mo.hstack([*settings.elements.values()], wrap=True, justify="start"),
            mo.hstack([sigma, done], wrap=True, justify="start"),
        ]
    )
    return done, settings, sigma


@app.cell(hide_code=True)
def _(done, mo, numbers, pictures, settings, sigma):
    _steps = numbers.scalar_network(sigma.value, settings.value)[: done.value]
    mo.Html(pictures.table("steps", [(a, b, f"{value:.4f}") for a, b, value in _steps]))
    return


@app.cell(hide_code=True)
def _(mo, numbers):
    matrix_sigma = mo.ui.dropdown(
        list(numbers.HIDDEN), value="tanh", label="activation of the matrix network"
    )
    seed = mo.ui.slider(0, 9, 1, value=0, label="seed of the weights", show_value=True)
    mo.vstack(
        [
            mo.md("### The same in matrices: a (3, 4, 2) network, five examples"),
            mo.hstack([matrix_sigma, seed], wrap=True, justify="start"),
        ]
    )
    return matrix_sigma, seed


@app.cell(hide_code=True)
def _(matrix_sigma, mo, numbers, pictures, seed):
    _found = numbers.matrix_network(matrix_sigma.value, seed.value)
    _apart = max(
        float(abs(a - b).max()) for a, b in zip(_found.manual, _found.automatic, strict=True)
    )
    mo.Html(
        pictures.heat(
            "deltas", "The errors of both layers as heat maps", _found.deltas, ["δ¹", "δ²"]
        )
        + pictures.heat(
            "gradients",
            "The gradient of the first weights, by hand and by jax.grad, as heat maps",
            [_found.manual[0], _found.automatic[0]],
            ["∂C/∂W¹ by the four equations", "∂C/∂W¹ by jax.grad"],
        )
        + pictures.table("matrix", [("largest difference", f"{_apart:.1e}")])
    )
    return


@app.cell(hide_code=True)
def _(mo, numbers):
    data = mo.ui.dropdown(["moons", "spirals"], value="moons", label="points")
    hidden = mo.ui.dropdown(list(numbers.HIDDEN), value="tanh", label="activation of the layers")
    scheme = mo.ui.dropdown(["xavier", "he", "normal"], value="xavier", label="initialisation")
    rate = mo.ui.slider(
        steps=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
        value=0.3,
        label="learning rate",
        show_value=True,
    )
    time = mo.ui.slider(
        0, numbers.STEPS - 1, 1, value=numbers.STEPS - 1, label="training step", show_value=True
    )
    mo.vstack(
        [
            mo.md(
                "## 5 · Train and watch\n\nThree hidden layers of 16. Try sigmoid and see the "
                "first layer's gradient vanish; relu with a learning rate of 3 or 10, and units "
                "die."
            ),
            mo.hstack([data, hidden, scheme, rate, time], wrap=True, justify="start"),
        ]
    )
    return data, hidden, rate, scheme, time


@app.cell(hide_code=True)
def _(data, hidden, mo, numbers, pictures, rate, scheme, time):
    _chosen = (data.value, hidden.value, scheme.value, rate.value)
    _run = numbers.train(*_chosen)
    _rows = [
        ("cost", f"{_run.cost[time.value]:.4f}"),
        ("flat units by layer", " · ".join(f"{each:.0%}" for each in _run.dead[time.value])),
    ]
    mo.Html(pictures.training(*_chosen, time.value) + pictures.table("training", _rows))
    return


@app.cell(hide_code=True)
def _(mo, numbers):
    asked = numbers.questions()
    answers = mo.ui.array([mo.ui.text(label=each.text, full_width=True) for each in asked])
    mo.vstack(
        [
            mo.md("## 6 · Check yourself"),
            *[
                mo.vstack([answer, mo.accordion({f"Hint {i}": each.hint})])
                for i, (answer, each) in enumerate(
                    zip(answers.elements, asked, strict=True), start=1
                )
            ],
        ]
    )
    return answers, asked


@app.cell(hide_code=True)
def _(answers, asked, mo, numbers, pictures):
    mo.Html(
        pictures.table(
            "answers",
            [
                (f"Question {i}", numbers.verdict(given, each.answer))
                for i, (given, each) in enumerate(zip(answers.value, asked, strict=True), start=1)
            ],
        )
    )
    return


if __name__ == "__main__":
    app.run()
