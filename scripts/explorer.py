# /// script
# [tool.marimo.display]
# theme = "system"
# ///

"""Backpropagation to touch, in six parts, every number computed by jaxbackprop.

    pip install -e ".[explorer]" && marimo run scripts/explorer.py

opens it in a browser, in five seconds. It asks nothing of the network.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="Backpropagation, by hand")


@app.cell(hide_code=True)
def _():
    import html

    import marimo as mo
    from explorer_parts import (
        chain,
        controls,
        curves,
        expressions,
        four,
        graphs,
        network,
        questions,
        training,
        writing,
    )

    mo.vstack(
        [
            mo.Html(writing.STYLE),
            mo.md("""
    # Backpropagation, by hand

    Six things to touch. Every number is computed by jaxbackprop; sliders take the arrow keys. What
    goes forward is dark, what comes back is red.

    ## 1 · The chain rule
    """),
        ]
    )
    return (
        chain,
        controls,
        curves,
        expressions,
        four,
        graphs,
        html,
        mo,
        network,
        questions,
        training,
        writing,
    )


@app.cell(hide_code=True)
def _(chain, mo):
    outer = mo.ui.dropdown(list(chain.UNARY), value="sin", label="outer function f")
    inner = mo.ui.dropdown(list(chain.UNARY), value="square", label="inner function g")
    at = mo.ui.slider(steps=chain.PLACES, value=2.0, label="x of the chain", show_value=True)
    mo.hstack([outer, inner, at], wrap=True, justify="start")
    return at, inner, outer


@app.cell(hide_code=True)
def _(at, chain, curves, inner, mo, outer, writing):
    _x = chain.place(at.value)
    _found = chain.chain(outer.value, inner.value, _x)
    _rows = [("x", chain.place_name(at.value))]
    _rows += [(name, writing.number(value)) for name, value in _found.items()]
    mo.Html(
        writing.beside(
            (curves.chain_rule(outer.value, inner.value, _x), 420),
            (
                writing.table("chain", _rows)
                + "<p>df/dx is the product of the two slopes: the outer one, taken at g(x), times "
                "the inner one, taken at x.</p>",
                300,
            ),
        )
    )
    return


@app.cell(hide_code=True)
def _(chain, mo):
    pair = mo.ui.dropdown(list(chain.PAIRS), value="u · v", label="f(u, v)")
    first = mo.ui.dropdown(list(chain.UNARY), value="square", label="u(x)")
    second = mo.ui.dropdown(list(chain.UNARY), value="sin", label="v(x)")
    both_at = mo.ui.slider(steps=chain.PLACES, value=2.0, label="x of both paths", show_value=True)
    mo.vstack(
        [
            mo.md("### Two paths: along a path slopes multiply, and the paths add"),
            mo.hstack([pair, first, second, both_at], wrap=True, justify="start"),
        ]
    )
    return both_at, first, pair, second


@app.cell(hide_code=True)
def _(both_at, chain, first, mo, pair, second, writing):
    _chosen = (pair.value, first.value, second.value, chain.place(both_at.value))
    mo.Html(writing.beside((chain.paths_figure(*_chosen), 480), (chain.paths_table(*_chosen), 300)))
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
def _(controls, expressions, graphs, mo, typed):
    problem, expression, letters, reached = "", None, None, None
    try:
        expression = expressions.parse(typed.value)
    except ValueError as error:
        problem = str(error)
    if expression:
        letters = mo.ui.dictionary(
            {
                name: mo.ui.slider(
                    -4, 4, 0.1, value=start, label=f"value of {name}", show_value=True
                )
                for name, start in zip(expression.names, (2.0, 3.0, 1.0, 0.5, -1.0), strict=False)
            }
        )
        # It depends on the expression alone: a value that moves leaves the step where it is.
        _last = graphs.schedule(expression.text).last
        reached = mo.ui.anywidget(
            controls.Stepper(step=_last, last=_last, label="step of the passes")
        )
    mo.vstack(
        [mo.hstack([*letters.elements.values()], wrap=True, justify="start"), reached]
    ) if expression else None
    return expression, letters, problem, reached


@app.cell(hide_code=True)
def _(expression, graphs, html, letters, mo, problem, reached, writing):
    if expression:
        _values = tuple(float(each) for each in letters.value.values())
        _step = reached.value["step"]
        _shown = mo.Html(
            writing.beside(
                (graphs.figure(expression.text, _values, _step), 480),
                (graphs.table(expression.text, _values, _step), 300),
            )
        )
    else:
        _shown = mo.Html(f'<p role="alert" data-figure="problem">{html.escape(problem)}</p>')
    _shown
    return


@app.cell(hide_code=True)
def _(four, mo):
    _open = {title: mo.md(page) for title, page in four.pages().items()}
    mo.vstack([mo.md("## 3 · The four equations"), mo.accordion(_open, multiple=True)])
    return


@app.cell(hide_code=True)
def _(controls, mo, network):
    settings = mo.ui.dictionary(
        {
            name: mo.ui.slider(
                -3, 3, 0.1, value=value, label=f"{network.KINDS[name[0]]} {name}", show_value=True
            )
            for name, value in network.SCALAR.items()
        }
    )
    sigma = mo.ui.dropdown(list(network.HIDDEN), value="sigmoid", label="activation σ")
    done = mo.ui.anywidget(
        controls.Stepper(step=network.LAST, last=network.LAST, label="step of the network")
    )
    mo.vstack(
        [
            mo.md("## 4 · Step by step\n\nTwo layers of one neuron: x → a₁ → a₂ → C."),
            mo.hstack([*settings.elements.values(), sigma], wrap=True, justify="start"),
            done,
        ]
    )
    return done, settings, sigma


@app.cell(hide_code=True)
def _(done, mo, network, settings, sigma, writing):
    _walk, _step = network.scalar(sigma.value, settings.value), done.value["step"]
    mo.Html(
        writing.beside(
            (network.figure("scalar", _walk, _step), 700),
            (network.table("steps", _walk, _step), 280),
        )
    )
    return


@app.cell(hide_code=True)
def _(controls, mo, network):
    matrix_sigma = mo.ui.dropdown(
        list(network.HIDDEN), value="tanh", label="activation of the matrix network"
    )
    seed = mo.ui.slider(0, 9, 1, value=0, label="seed of the weights", show_value=True)
    matrix_done = mo.ui.anywidget(
        controls.Stepper(step=network.LAST, last=network.LAST, label="step of the matrices")
    )
    mo.vstack(
        [
            mo.md("### The same in matrices: a (3, 4, 2) network, five examples"),
            mo.hstack([matrix_sigma, seed], wrap=True, justify="start"),
            matrix_done,
        ]
    )
    return matrix_done, matrix_sigma, seed


@app.cell(hide_code=True)
def _(matrix_done, matrix_sigma, mo, network, seed, writing):
    _walk, _apart = network.matrices(matrix_sigma.value, seed.value)
    _step = matrix_done.value["step"]
    mo.Html(
        network.figure("matrices", _walk, _step)
        + "<p>A gradient has the shape of what it belongs to.</p>"
        + writing.beside(
            (network.table("matrix steps", _walk, _step), 420),
            (
                writing.table(
                    "matrix", [("largest difference from jax.grad", writing.number(_apart))]
                ),
                300,
            ),
        )
    )
    return


@app.cell(hide_code=True)
def _(mo, network, training):
    data = mo.ui.dropdown(["moons", "spirals"], value="moons", label="points")
    hidden = mo.ui.dropdown(list(network.HIDDEN), value="tanh", label="activation of the layers")
    scheme = mo.ui.dropdown(["xavier", "he", "normal"], value="xavier", label="initialisation")
    depth = mo.ui.dropdown(list(map(str, training.DEPTHS)), value="3", label="hidden layers")
    rate = mo.ui.slider(
        steps=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
        value=0.3,
        label="learning rate",
        show_value=True,
    )
    time = mo.ui.slider(
        0, training.STEPS - 1, 1, value=training.STEPS - 1, label="training step", show_value=True
    )
    mo.vstack(
        [
            mo.md(
                f"## 5 · Train and watch\n\nHidden layers of {training.WIDTH}. Try sigmoid in "
                "eight hidden layers: the first layer's error vanishes, and the network learns "
                "nothing. Relu with a learning rate of 3 or 10: units die."
            ),
            mo.hstack([data, hidden, scheme, depth, rate, time], wrap=True, justify="start"),
        ]
    )
    return data, depth, hidden, rate, scheme, time


@app.cell(hide_code=True)
def _(curves, data, depth, hidden, mo, rate, scheme, time, training, writing):
    _choice = training.Choice(data.value, hidden.value, scheme.value, int(depth.value), rate.value)
    _words = "".join(f"<p>{each}</p>" for each in training.words(_choice, time.value))
    mo.Html(
        writing.beside(
            (curves.boundary(_choice, time.value), 300),
            (curves.errors(_choice, time.value), 380),
            (
                f'{training.table(_choice, time.value)}<div aria-live="polite" '
                f'data-figure="words">{_words}</div>',
                260,
            ),
        )
    )
    return


@app.cell(hide_code=True)
def _(controls, mo, questions):
    _asked = [
        mo.ui.anywidget(controls.Question(each.text, each.hint, each.judge))
        for each in questions.questions()
    ]
    mo.vstack(
        [
            mo.md("## 6 · Check yourself\n\nA number, or a fraction such as 1/4."),
            *_asked,
        ]
    )
    return


if __name__ == "__main__":
    print(__doc__)
