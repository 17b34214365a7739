"""Where scripts/train.py writes its numbers as each epoch ends: a table, TensorBoard, or wandb."""

import atexit
import csv
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS = ("loss", "train_accuracy", "test_accuracy")


def logger(kind: str | None, folder: Path) -> Callable[[dict[str, list]], None]:
    """A function of the history, to be called after each epoch.

    Raises ValueError where the library that writes is not installed.
    """
    if kind is None:
        return lambda history: None
    if kind == "csv":
        return lambda history: _table(folder / "metrics.csv", history)
    if kind == "tensorboard":
        writer = _library("tensorboardX").SummaryWriter(str(folder / "tensorboard"))
        atexit.register(writer.close)  # it writes from a thread of its own
        return lambda history: _to_tensorboard(writer, history)
    run = _library("wandb").init(project="jaxbackprop", dir=str(folder))
    return lambda history: run.log(_last(history), step=history["epoch"][-1])


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f"--log needs {name}: pip install {name}") from None


def _last(history: dict[str, list]) -> dict[str, float]:
    return {name: history[name][-1] for name in NUMBERS}


def _table(path: Path, history: dict[str, list]) -> None:
    """Anew each time: a run that goes on from a saved state may repeat an epoch."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("epoch", *NUMBERS))
        writer.writerows(zip(history["epoch"], *(history[n] for n in NUMBERS), strict=True))


def _to_tensorboard(writer: Any, history: dict[str, list]) -> None:
    for name, number in _last(history).items():
        writer.add_scalar(name, number, history["epoch"][-1])
