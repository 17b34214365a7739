"""The chapter's algorithm in columns, transcribed to NumPy: an oracle that shares no code with JAX.

Its four equations are arguments, so that a test can put a wrong one in.
"""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


SIGMA = {
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "identity": (lambda z: z, np.ones_like),
}


def output_error(grad_a, sigma_prime):
    return grad_a * sigma_prime


def hidden_error(W_next, delta_next, sigma_prime):
    return np.dot(W_next.T, delta_next) * sigma_prime


def weight_gradient(delta, a_prev):
    m = delta.shape[1]
    return sum(np.outer(delta[:, i], a_prev[:, i]) for i in range(m)) / m


def bias_gradient(delta):
    return delta.mean(axis=1)[:, None]


EQUATIONS = {
    "output_error": output_error,
    "hidden_error": hidden_error,
    "weight_gradient": weight_gradient,
    "bias_gradient": bias_gradient,
}


def squared_error_backprop(layers, x, y, hidden, output, **wrong):
    """(cost, [(dW, db), …]) of C = 1/m Σ ½‖a − y‖² in float64; layers are (W, b) pairs."""
    eq = EQUATIONS | wrong
    a, zs, activations = np.asarray(x, np.float64), [], [np.asarray(x, np.float64)]
    layers = [(np.asarray(W, np.float64), np.asarray(b, np.float64)) for W, b in layers]
    names = [hidden] * (len(layers) - 1) + [output]
    for (W, b), name in zip(layers, names, strict=True):
        z = np.dot(W, a) + b
        a = SIGMA[name][0](z)
        zs.append(z)
        activations.append(a)
    cost = 0.5 * np.sum((a - y) ** 2) / y.shape[1]
    delta = eq["output_error"](a - y, SIGMA[output][1](zs[-1]))
    gradients = []
    for l in range(len(layers), 0, -1):
        gradients.append(
            (eq["weight_gradient"](delta, activations[l - 1]), eq["bias_gradient"](delta))
        )
        if l > 1:
            delta = eq["hidden_error"](layers[l - 1][0], delta, SIGMA[names[l - 2]][1](zs[l - 2]))
    return cost, gradients[::-1]
