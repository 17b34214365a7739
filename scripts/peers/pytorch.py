"""PyTorch, eager and compiled, as its tutorial writes it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peers.work import RATES, Run, Weights, Work, from_rows, shuffled


def torch_model(work: Work, weights: Weights) -> Any:
    import torch
    from torch import nn

    sigma = {"relu": nn.ReLU, "tanh": nn.Tanh}[work.hidden]
    parts = []
    for W, b in weights:
        linear = nn.Linear(*W.shape[::-1])
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(W))
            linear.bias.copy_(torch.tensor(b.ravel()))
        parts += [linear, sigma()]
    return nn.Sequential(*parts[:-1])


def torch_read(pairs: Sequence[tuple[Any, Any]]) -> Weights:
    return from_rows([(W.detach().cpu().numpy(), b.detach().cpu().numpy()) for W, b in pairs])


def done(result: Any) -> Any:
    """The result when it is there: on a card, calls return before the work is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def linears(model: Any) -> list:
    return [part for part in model if hasattr(part, "weight")]


def torch_peer(compile: bool) -> tuple[Callable, Callable]:
    def prepare(work, weights):
        import torch

        model = torch_model(work, weights)
        return model, torch.compile(model) if compile else model, torch.nn.CrossEntropyLoss()

    def one(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray) -> Run:
        import torch

        model, apply, criterion = prepare(work, weights)
        x, y = torch.tensor(X), torch.tensor(Y.argmax(1))

        def call():
            model.zero_grad()
            criterion(apply(x), y).backward()
            return done([(l.weight.grad, l.bias.grad) for l in linears(model)])

        begin = time.perf_counter()
        call()
        return Run(call, torch_read, time.perf_counter() - begin if compile else None)

    def epoch(work: Work, weights: Weights, X: np.ndarray, Y: np.ndarray, rule: str) -> Run:
        import torch

        model, apply, criterion = prepare(work, weights)
        rules = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
        optimizer = rules[rule](model.parameters(), lr=RATES[rule])
        x, y = torch.tensor(X), torch.tensor(Y.argmax(1))

        def call():
            for rows in torch.tensor(shuffled(work, len(X))):
                optimizer.zero_grad()
                criterion(apply(x[rows]), y[rows]).backward()
                optimizer.step()
            return done([(l.weight, l.bias) for l in linears(model)])

        return Run(call, torch_read)

    return one, epoch


def torch_products(work: Work, weights: Weights, X: np.ndarray) -> Callable[[], None]:
    """The products of the gradients of all X alone, as `nn.Linear` has them: examples in rows."""
    import torch

    Ws = [torch.tensor(W) for W, _ in weights]
    batches = torch.tensor(X).split(work.batch)

    @torch.no_grad()
    def call():
        for x in batches:
            kept = [x]
            for W in Ws:
                kept.append(kept[-1] @ W.T)
            delta = kept[-1]
            for l in reversed(range(len(Ws))):
                delta.T @ kept[l]
                if l > 0:
                    delta = delta @ Ws[l]
        done(None)

    return call
