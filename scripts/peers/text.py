"""The class of the text in NumPy, with a batch as the columns of a matrix."""

import numpy as np

from peers.work import RATES, Run, Weights, Work, shuffled


class TextNetwork:
    """Lists of weights and biases, changed in place by mini-batches."""

    def __init__(self, weights: Weights, hidden: str):
        self.weights, self.biases = ([np.array(part[k]) for part in weights] for k in (0, 1))
        self.hidden = hidden

    def sigma(self, z):
        return np.maximum(z, 0) if self.hidden == "relu" else np.tanh(z)

    def sigma_prime(self, z):
        return (z > 0).astype(z.dtype) if self.hidden == "relu" else 1 - np.tanh(z) ** 2

    def backprop(self, x, y):
        activations, zs = [x], []
        for W, b in zip(self.weights, self.biases, strict=True):
            zs.append(W @ activations[-1] + b)
            activations.append(self.sigma(zs[-1]))
        e = np.exp(zs[-1] - zs[-1].max(axis=0))
        delta = e / e.sum(axis=0) - y
        gradients = []
        for l in range(len(zs) - 1, -1, -1):
            m = delta.shape[1]
            b = delta.sum(axis=1, keepdims=True) / m
            gradients.append((delta @ activations[l].T / m, b))
            if l > 0:
                delta = (self.weights[l].T @ delta) * self.sigma_prime(zs[l - 1])
        return gradients[::-1]

    def update_mini_batch(self, x, y, eta):
        for l, (dW, db) in enumerate(self.backprop(x, y)):
            self.weights[l] = self.weights[l] - eta * dW
            self.biases[l] = self.biases[l] - eta * db


def text_gradient(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
    network, x, y = TextNetwork(weights, work.hidden), np.ascontiguousarray(X.T), Y.T.copy()
    return Run(lambda: network.backprop(x, y), list)


def text_epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run | None:
    if rule != "sgd":
        return None  # the text's class has no other
    network = TextNetwork(weights, work.hidden)

    def call():
        for rows in shuffled(work, len(X)):
            network.update_mini_batch(X[rows].T, Y[rows].T, RATES[rule])
        return list(zip(network.weights, network.biases, strict=True))

    return Run(call, list)
