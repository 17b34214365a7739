"""Part 6: the text's questions. Every answer is computed; none is written down."""

import fractions
import functools
import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from explorer_parts import chain, network, writing
from jaxbackprop import Layer, Network, Trace, backprop, equations, grad, init, loss
from jaxbackprop.activations import ACTIVATIONS
from jaxbackprop.flow import steepest
from jaxbackprop.forward import last_error


class Question(NamedTuple):
    text: str
    hint: str
    answer: float

    def judge(self, given: str) -> str:
        return verdict(given, self.answer)


def questions() -> list[Question]:
    """In the order of the text."""
    return [*_chains(), *_neurons(), *_equations(), *_costs()]


def _chains() -> list[Question]:
    return [
        Question(
            "The slope of sin(x²) at x = 1",
            "Two slopes multiply: the outer function's, taken at the inner value, and the inner "
            "one's, taken at x.",
            chain.chain("sin", "square", 1.0)["df/dx"],
        ),
        Question(
            "The slope of x² · sin(x) at x = π/4",
            "There are two paths from x. Draw them in part 1, and add what each brings.",
            chain.paths("u · v", "square", "sin", math.pi / 4).total,
        ),
        Question(
            "∂f/∂y of f = (x + y) · y at x = 2, y = 3",
            "y reaches f through the sum, and directly as well.",
            float(grad(lambda x, y: (x + y) * y, argnums=1)(2.0, 3.0)),
        ),
    ]


def _neurons() -> list[Question]:
    half = jnp.float32(0.5)
    wrong = (Layer(jnp.full((1, 1), 10.0), jnp.zeros((1, 1))),)
    at = jnp.ones((1, 1)), jnp.zeros((1, 1))
    slow = backprop(Network((1, 1)), wrong, *at)[1][0].W
    fast = backprop(Network((1, 1), loss="binary_cross_entropy"), wrong, *at)[1][0].W
    return [
        Question(
            "σ′(z) of the sigmoid where its output is half of the most it can be",
            "The slope follows from the output a alone; no z is needed.",
            float(ACTIVATIONS["sigmoid"].derivative(half, half)),
        ),
        Question(
            "∂C/∂w₁ of the two-layer network at the settings part 4 starts with",
            "The error of the first neuron, times what it was fed. Part 4 walks there.",
            float(network.scalar("sigmoid", network.SCALAR).find("∂C/∂w₁")[1].item()),
        ),
        Question(
            "What happens at saturation? A sigmoid neuron has w = 10, b = 0, x = 1 and the target "
            "0: how many times larger is ∂C/∂w with cross-entropy than with ½(a − y)²?",
            "Both costs differ by one factor in δ: the slope of the sigmoid at its output.",
            float((fast / slow).squeeze()),
        ),
        Question(
            "At most what share of the error do three sigmoid layers pass on by their slopes?",
            "Each multiplies by σ′. Where is σ′ steepest, and how steep is it there?",
            steepest(ACTIVATIONS["sigmoid"]) ** 3,
        ),
    ]


def _equations() -> list[Question]:
    column = jnp.ones((1, 1))
    active, inactive = (
        ACTIVATIONS["relu"].derivative(z * column, jax.nn.relu(z * column)) for z in (1.0, -2.0)
    )
    feeds, theirs = jnp.array([[0.5], [-1.0]]), jnp.array([[0.4], [-0.3]])
    return [
        Question(
            "δ of a sigmoid output 0.9 with the target 1, under cross-entropy",
            "The slope of the sigmoid cancels. What is left of BP1?",
            _last_error("sigmoid", "binary_cross_entropy", [0.9], [1.0])[0],
        ),
        Question(
            "δ of the second output of a softmax, (0.7, 0.2, 0.1), where the second class is right",
            "As behind a sigmoid the exponentials cancel. The target is one-hot.",
            _last_error("softmax", "cross_entropy", [0.7, 0.2, 0.1], [0.0, 1.0, 0.0])[1],
        ),
        Question(
            "Derive the bias: a neuron's δ is 0.2, −0.5 and 0.6 for three examples; ∂C/∂b is …",
            "A bias is fed by every example with the same input, and the cost is a mean.",
            float(equations.bias_gradient(jnp.array([[0.2, -0.5, 0.6]])).squeeze()),
        ),
        Question(
            "A ReLU with z > 0 feeds two neurons, by the weights 0.5 and −1; their errors are 0.4 "
            "and −0.3. Its own error is …",
            "Each error comes back by the weight that carried the signal there.",
            float(equations.hidden_error(feeds, theirs, active).squeeze()),
        ),
        Question(
            "And the error of the same ReLU with z = −2",
            "What does an inactive unit let through?",
            float(equations.hidden_error(feeds, theirs, inactive).squeeze()),
        ),
        Question(
            "How many of the four equations change with the cost?",
            "In which of them does C stand by itself, and not only through δ?",
            float(sum("grad_a" in inspect.signature(each).parameters for each in FOUR)),
        ),
    ]


FOUR = (
    *(equations.output_error, equations.hidden_error),
    *(equations.weight_gradient, equations.bias_gradient),
)


def _last_error(output: str, cost: str, a: list[float], y: list[float]) -> list[float]:
    """BP1 for outputs that are given."""
    outputs, targets = jnp.array(a)[:, None], jnp.array(y)[:, None]
    net = Network((1, len(a)), output=output, loss=cost)
    trace = Trace((jnp.zeros_like(outputs),), (jnp.zeros((1, 1)), outputs))
    return last_error(net, trace, targets).ravel().tolist()


def _costs() -> list[Question]:
    small, four = Network((3, 4, 2)), Network((3, 3, 3, 3, 3))
    weights = sum(leaf.size for leaf in jax.tree.leaves(init(small, jax.random.key(0))))
    given = init(four, jax.random.key(0)), jnp.ones((3, 2)), jnp.ones((3, 2))
    ahead, both = (
        str(jax.make_jaxpr(functools.partial(f, four))(*given)).count("dot_general")
        for f in (loss, backprop)
    )
    return [
        Question(
            "How many evaluations of the cost does it take to find the gradient of a (3, 4, 2) "
            "network by nudging each weight and bias up and down?",
            "Count the entries of both layers, then the evaluations for each.",
            float(2 * weights),
        ),
        Question(
            "Four layers of one width: how many matrix products does the backward pass make for "
            "each one of the forward pass?",
            "Two a layer, but for the first one: does anybody ask for the error of x?",
            (both - ahead) / ahead,
        ),
        Question(
            "With 36 layers, keeping every k-th activation and computing the others again needs "
            "about 36/k + k of them at once. For which k is that least?",
            "What one term gains, the other loses: where are they equal?",
            float(min(range(1, 37), key=lambda k: 36 / k + k)),
        ),
    ]


def verdict(given: str, answer: float) -> str:
    """What is said to an answer: a number or a fraction, right to a rounding in the third place."""
    text = given.strip().replace("−", "-").replace(",", ".").replace(" ", "")
    if not text:
        return ""
    top, _, bottom = text.partition("/")
    try:
        number = float(fractions.Fraction(top) / fractions.Fraction(bottom or 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        return "write a number or a fraction, such as 0.25 or 1/4"
    if abs(number - answer) <= max(5e-3 * abs(answer), 1e-6):
        return f"right: {writing.number(answer)}"
    return "not yet"
