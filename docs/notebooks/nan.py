# Where is my NaN? Four functions whose value is fine and whose gradient is not:
#
#     pip install -e ".[explorer]" && marimo run docs/notebooks/nan.py

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Where is my NaN?")


@app.cell
def _():
    import jax.numpy as jnp
    import marimo as mo

    from jaxbackprop import grad, inspect

    def root(x):
        return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))

    def length(x):
        return jnp.linalg.norm(x - jnp.mean(x))

    def share(x):
        return jnp.sum(jnp.where(x == 0, 0.0, x / x))

    def angle(x):
        return jnp.sum(jnp.arctan2(x, 0 * x))

    traps = {
        "√x behind a where, at 0": (root, jnp.array([0.0, 4.0])),
        "‖x − mean‖ of equal numbers": (length, jnp.ones(3)),
        "x / x behind a where, at 0": (share, jnp.array([0.0, 2.0])),
        "atan2(0, 0)": (angle, jnp.array([0.0, 1.0])),
    }
    return grad, inspect, mo, traps


@app.cell
def _(mo, traps):
    chosen = mo.ui.dropdown(list(traps), value="√x behind a where, at 0", label="trap")
    mo.vstack([mo.md("# Where is my NaN?"), chosen])
    return (chosen,)


@app.cell
def _(chosen, grad, inspect, mo, traps):
    f, x = traps[chosen.value]
    gradient = grad(f)(x)
    origin = str(inspect(f)(x).origin())
    mo.md(f"""
    The gradient is `{gradient}`. `inspect(f)(x).origin()` says:

    ```
    {origin.replace(chr(10), chr(10) + "    ")}
    ```
    """)
    return gradient, origin


if __name__ == "__main__":
    app.run()
