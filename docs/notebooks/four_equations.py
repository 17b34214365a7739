# The four equations on a network of two neurons, number by number:
#
#     pip install -e ".[explorer]" && marimo run docs/notebooks/four_equations.py

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="The four equations")


@app.cell
def _():
    import jax.numpy as jnp
    import marimo as mo

    from jaxbackprop import Layer, Network, backward, forward

    mo.md("""
    # The four equations

    x → w¹, b¹ → a¹ → w², b² → a² → C, with sigmoids and C = ½(a² − y)². The sliders begin where
    the text does; every number below is computed by `forward` and `backward`.
    """)
    return Layer, Network, backward, forward, jnp, mo


@app.cell
def _(mo):
    w1 = mo.ui.slider(-3, 3, 0.1, value=0.8, label="w¹", show_value=True)
    b1 = mo.ui.slider(-3, 3, 0.1, value=-0.2, label="b¹", show_value=True)
    w2 = mo.ui.slider(-3, 3, 0.1, value=1.2, label="w²", show_value=True)
    b2 = mo.ui.slider(-3, 3, 0.1, value=-0.5, label="b²", show_value=True)
    mo.hstack([w1, b1, w2, b2], wrap=True, justify="start")
    return b1, b2, w1, w2


@app.cell
def _(Layer, Network, b1, b2, backward, forward, jnp, w1, w2):
    def one(number):
        return jnp.full((1, 1), float(number))

    params = (Layer(one(w1.value), one(b1.value)), Layer(one(w2.value), one(b2.value)))
    network, x, y = Network((1, 1, 1)), one(0.5), one(1.0)
    trace = forward(network, params, x)
    gradients, deltas = backward(network, params, trace, y)
    return deltas, gradients, trace


@app.cell
def _(deltas, gradients, mo, trace):
    def shown(array):
        return f"{float(array.squeeze()):+.4f}"

    a = trace.activations
    mo.md(f"""
    | | equation | number |
    |---|---|---:|
    | forward | a¹ = σ(w¹ x + b¹) | {shown(a[1])} |
    | forward | a² = σ(w² a¹ + b²) | {shown(a[2])} |
    | BP1 | δ² = (a² − y) σ′(z²) | {shown(deltas[1])} |
    | BP2 | δ¹ = w² δ² σ′(z¹) | {shown(deltas[0])} |
    | BP3 | ∂C/∂w² = δ² a¹ | {shown(gradients[1].W)} |
    | BP3 | ∂C/∂w¹ = δ¹ x | {shown(gradients[0].W)} |
    | BP4 | ∂C/∂b² = δ² | {shown(gradients[1].b)} |
    | BP4 | ∂C/∂b¹ = δ¹ | {shown(gradients[0].b)} |
    """)
    return


if __name__ == "__main__":
    app.run()
