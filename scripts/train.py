"""Train a network on handwritten digits, with gradients by hand.

    python scripts/train.py                                  the digits that ship with scikit-learn
    python scripts/train.py --data-dir ~/mnist               MNIST, Fashion-MNIST: any IDX folder
    python scripts/train.py --hidden tanh --optimizer sgd --learning-rate 0.5
    python scripts/train.py --gradient automatic             jax.grad in place of the four equations
    python scripts/train.py --sizes 64 $(yes 128 | head -200) 10 --checkpoint 1MiB
    python scripts/train.py --run-dir runs/a --save-every 5  save; then, after whatever happened:
    python scripts/train.py --run-dir runs/a --save-every 5 --resume
    python scripts/train.py --devices 4                      each batch divided among them

Each run leaves its metrics and learning curve in a folder under `runs/`. On the digits it takes
some ten seconds, most of them to start and to compile. SIGINT and SIGTERM end a
run after the steps at hand, saved; a second one ends it at once.
"""

import dataclasses
import hashlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command  # noqa: F401
import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from train_parts import faults
from train_parts.log import logger
from train_parts.options import Options
from train_parts.task import Task, describe, make_task

from jaxbackprop import flow, plots, processes, rows, saving, train
from jaxbackprop.network import Params

STEPS_AT_ONCE = 500  # between two looks at whether a signal has come
SHOWN = (
    BarColumn(),
    TextColumn("epoch {task.completed}/{task.total}"),
    TextColumn("{task.description}"),
    TimeRemainingColumn(),
)


def main(options: Options) -> None:
    processes.join(
        options.coordinator,
        options.num_processes,
        options.process_id,
        devices=options.devices,
        patience=options.patience,
    )
    console = Console(highlight=False, quiet=options.process_id > 0)
    folder = options.run_dir or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    task = make_task(options)
    state, history = begin(options, task, folder, console)
    console.print(
        f"{task.network.sizes}, {options.hidden}, {options.output}, {options.loss};"
        f" {options.optimizer} {options.learning_rate:g};"
        f" {task.examples.examples} examples, {task.tests.examples} for testing"
    )
    state, number = learn(options, task, folder, state, history, console)
    if number:
        save(options, task, folder, state, history)
        console.print(f"stopped at step {int(state.step)}, saved; go on with --resume")
        sys.exit(128 + number)
    if options.process_id == 0:
        report(options, task, state.params, history, folder, console)


def begin(
    options: Options, task: Task, folder: Path, console: Console
) -> tuple[train.State, dict[str, list]]:
    """The state and the history of a new run, or those that --resume finds.

    The folder is made here: where it cannot be, nothing is trained in vain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    states = folder / "states"
    state = train.start(task.network, task.optimizer, jax.random.key(options.seed))
    history = new_history()
    if options.resume:
        state, step, history = saving.restore(states, state, describe(options, task.network))
        console.print(f"resumed at step {step}")
    elif any(states.glob(f"*/{saving.SEAL}")):
        raise ValueError(f"{folder} holds saved states: add --resume, or take another --run-dir")
    done = len(history["epoch"])
    if done > options.epochs:
        raise ValueError(f"--epochs is {options.epochs}, the run in {folder} has {done} already")
    if options.flow and len(history["flow"]) < done:
        raise ValueError(f"--flow draws every epoch, the run in {folder} began without it")
    return rows.everywhere(task.examples.mesh, state), history


def save(
    options: Options, task: Task, folder: Path, state: train.State, history: dict[str, list]
) -> None:
    """By process 0, which has the whole state as each of them does."""
    if options.process_id == 0:
        saving.save(folder / "states", state, describe(options, task.network), history)


def learn(
    options: Options,
    task: Task,
    folder: Path,
    state: train.State,
    history: dict[str, list],
    console: Console,
) -> tuple[train.State, int]:
    """Train until there are enough epochs or a signal comes, and write the history.

    Returns the last state, and the signal's number or 0.
    """
    in_epoch = task.examples.examples // options.batch
    received, seen = listen(), []  # by flow, in the parts of an epoch
    log = logger(options.log if options.process_id == 0 else None, folder)
    programs: dict[int, Callable] = {}
    with Progress(*SHOWN, console=console) as progress:
        shown = progress.add_task(
            "compiling", total=options.epochs, completed=len(history["epoch"])
        )
        while len(history["epoch"]) < options.epochs and not processes.agree(received):
            steps = min(STEPS_AT_ONCE, in_epoch - int(state.step) % in_epoch)
            if steps not in programs:
                programs[steps] = compiled(options, task, state, steps, history)
            begun = time.perf_counter()
            state, metrics = programs[steps](state, task.examples)
            metrics = jax.device_get(metrics)
            faults.stop_if_not_finite(options, task, state, metrics)
            seen.append((metrics.seen, metrics.watched))
            history["partial"] += metrics.loss.tolist()
            history["first_loss"] = history["first_loss"] or metrics.loss[:1].tolist()
            history["seconds"].append((time.perf_counter() - begun) / steps * in_epoch)
            if int(state.step) % in_epoch == 0:
                end_epoch(task, state.params, history, seen if options.flow else None)
                seen = []
                progress.update(shown, advance=1, description=summary(history))
                log(history)
                if began_to_diverge(history):
                    console.print(f"{divergence(history)}: {slower(options)}")
                if options.save_every and len(history["epoch"]) % options.save_every == 0:
                    save(options, task, folder, state, history)
    return state, processes.agree(received)


def compiled(
    options: Options, task: Task, state: train.State, steps: int, history: dict[str, list]
) -> Callable:
    """The program of so many steps. What it takes to make is no part of an epoch's time."""
    begun = time.perf_counter()
    looks = {"watch": flow.active, "observe": flow.observe} if options.flow else {}
    program = rows.run.lower(
        *(task.network, task.optimizer, state, task.examples),
        batch=options.batch,
        steps=steps,
        gradient=task.gradient,
        **looks,
    ).compile()
    history["compile_seconds"].append(time.perf_counter() - begun)
    return program


def new_history() -> dict[str, list]:
    """By epoch; `partial` are the losses so far of one that is not over, `seconds` by its parts,
    `compile_seconds` by program."""
    by_epoch = ("epoch", "loss", "train_accuracy", "test_accuracy", "seconds", "flow")
    return {name: [] for name in (*by_epoch, "first_loss", "partial", "compile_seconds")}


def end_epoch(task: Task, params: Params, history: dict[str, list], seen: list[Any] | None) -> None:
    """Turn the losses of an epoch's steps, and what flow saw in it, into a line of the history."""
    history["epoch"].append(len(history["epoch"]) + 1)
    history["loss"].append(float(np.mean(history["partial"])))
    history["partial"] = []
    for name, own in (("train", task.examples), ("test", task.tests)):
        right = rows.evaluate(task.network, params, own)[1]
        history[f"{name}_accuracy"].append(float(right))
    if seen is not None:
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *seen)
        by_layer = flow.over_epoch(*whole)
        history["flow"].append({name: values.tolist() for name, values in by_layer.items()})


def began_to_diverge(history: dict[str, list]) -> bool:
    """Is this the first epoch whose loss is above that of the first step?"""
    above = [loss > history["first_loss"][0] for loss in history["loss"]]
    return above[-1] and sum(above) == 1


def divergence(history: dict[str, list]) -> str:
    return (
        f"epoch {history['epoch'][-1]}: the loss is {history['loss'][-1]:.3g}, "
        f"at the first step it was {history['first_loss'][0]:.3g}"
    )


def slower(options: Options) -> str:
    return f"try --learning-rate {options.learning_rate / 10:g}"


def summary(history: dict[str, list]) -> str:
    return f"loss {history['loss'][-1]:.4f}  test accuracy {history['test_accuracy'][-1]:.2%}"


def listen() -> list[int]:
    """The list to which SIGINT and SIGTERM are added; the second one ends the program at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return received


def report(
    options: Options,
    task: Task,
    params: Params,
    history: dict[str, list],
    folder: Path,
    console: Console,
) -> None:
    """Leave the metrics and the figure in the run's folder, and say where.

    The digest of the parameters tells whether two runs ended in the same bits.
    """
    digest = hashlib.sha256(
        b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
    )
    record = {
        "options": dataclasses.asdict(options),
        "sizes": task.network.sizes,
        "parameters_sha256": digest.hexdigest(),
        "history": history,
    }
    (folder / "metrics.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    plots.learning_curve(history, folder / "learning_curve.png")
    if options.flow:
        by_name = {k: [epoch[k] for epoch in history["flow"]] for k in history["flow"][0]}
        plots.gradient_flow(by_name, folder / "gradient_flow.png")
    each = np.median(history["seconds"])  # of an epoch, from those of its parts
    accuracy = history["test_accuracy"][-1]
    console.print(
        f"test accuracy {accuracy:.2%}; {sum(history['compile_seconds']):.1f} s to compile, "
        f"{each * 1e3:.3g} ms an epoch; see {folder}/"
    )
    if accuracy <= task.guess:
        console.print(
            f"That is no better than guessing: {task.guess:.1%} of the tests are of one class. "
            f"{slower(options).capitalize()}, or more --epochs."
        )


def run(options: Options) -> None:
    """main, with warnings in one line; errors are told by `command`."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a full disk, once for each array
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        main(options)
    except jax.errors.JaxRuntimeError as error:
        if options.num_processes == 1:
            raise
        sys.exit(f"{Path(__file__).name}: another process is lost: {error}")


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
