# Where does my memory go? A plan for a number of bytes that a slider chooses:
#
#     pip install -e ".[explorer]" && marimo run docs/notebooks/memory.py

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Where does my memory go?")


@app.cell
def _():
    import jax
    import jax.numpy as jnp
    import marimo as mo

    from jaxbackprop import checkpoint

    def loss(layers, x):
        for W, b in layers:
            x = jnp.tanh(x @ W + b)
        return jnp.mean(x**2)

    keys = jax.random.split(jax.random.key(0), 12)
    layers = [(jax.random.normal(key, (32, 32)) / 6, jnp.zeros(32)) for key in keys]
    x = jax.random.normal(jax.random.key(1), (512, 32))
    return checkpoint, layers, loss, mo, x


@app.cell
def _(checkpoint, layers, loss, mo, x):
    kept = checkpoint.kept(loss, layers, x)
    mo.md(f"""
    # Where does my memory go?

    Twelve layers of 32, 512 examples. What an ordinary backward pass keeps:

    ```
    {str(kept).replace(chr(10), chr(10) + "    ")}
    ```
    """)
    return


@app.cell
def _(mo):
    asked = mo.ui.slider(
        300, 1000, 50, value=450, label="KiB for the backward pass", show_value=True
    )
    asked  # noqa: B018
    return (asked,)


@app.cell
def _(asked, checkpoint, layers, loss, mo, x):
    try:
        plan = str(checkpoint.plan(loss, layers, x, bytes=asked.value * 1024))
    except ValueError as error:
        plan = str(error)
    mo.md(f"""
    ```
    {plan.replace(chr(10), chr(10) + "    ")}
    ```
    """)
    return (plan,)


if __name__ == "__main__":
    app.run()
