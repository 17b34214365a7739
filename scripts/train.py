"""Train a network on handwritten digits, with gradients by hand.

    python scripts/train.py                                  the digits that ship with scikit-learn
    python scripts/train.py --data-dir ~/mnist               MNIST, Fashion-MNIST: any IDX folder
    python scripts/train.py --hidden tanh --optimizer sgd --learning-rate 0.5
    python scripts/train.py --gradient automatic             jax.grad in place of the four equations
    python scripts/train.py --sizes 64 $(yes 128 | head -200) 10 --checkpoint 1MiB
    python scripts/train.py --run-dir runs/a --save-every 5  save; then, after whatever happened:
    python scripts/train.py --run-dir runs/a --save-every 5 --resume
    python scripts/train.py --devices 4                      each batch divided among them

Each run leaves its metrics and learning curve in a folder under `runs/`. SIGINT and SIGTERM end a
run after the steps at hand, saved; a second one ends it at once.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
import tyro
from jax.sharding import Mesh, NamedSharding
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jaxbackprop import (
    Network,
    budget,
    checkpoint,
    data,
    flow,
    plots,
    processes,
    saving,
    sharding,
    train,
)
from jaxbackprop.backprop import backprop
from jaxbackprop.network import Params

STEPS_AT_ONCE = 500  # between two looks at whether a signal has come
Rows = tuple[jax.Array, jax.Array]
UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train, on what, and how."""

    data_dir: Path | None = None
    """A folder with the four IDX files of MNIST's layout, plain or gzipped. Default: the digits."""
    sizes: tuple[int, ...] | None = None
    """Layer widths, input first. Default: 64 128 10 for the digits, 784 128 10 for IDX files."""
    hidden: str = "relu"
    """The hidden activation: sigmoid, tanh, relu, gelu, …"""
    output: str = "softmax"
    """The output activation."""
    loss: str = "cross_entropy"
    """squared_error, binary_cross_entropy or cross_entropy."""
    optimizer: str = "adam"
    """sgd, momentum, adam, or the name of any optax optimizer."""
    learning_rate: float = 2e-3
    """Passed to the optimizer."""
    batch: int = 32
    """Examples in a step."""
    epochs: int = 40
    """Passes over the training examples."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""
    gradient: Literal["manual", "automatic"] = "manual"
    """The four equations, or jax.grad."""
    checkpoint: str | None = None
    """Less memory: "every:12" keeps every 12th activation, "16MiB" what fits that many bytes."""
    memory_limit: str | None = None
    """Refuse a run that needs more bytes ("2GiB"). Default: what is free on the device."""
    flow: bool = False
    """Draw gradients, errors, steps and dead units of each layer by epoch."""
    run_dir: Path | None = None
    """Where metrics, figure and saved states go. Default: a new folder under runs/."""
    save_every: int = 0
    """Save the state every so many epochs; 0 saves only when a signal stops the run."""
    resume: bool = False
    """Go on from the newest sound state in --run-dir."""

    devices: int = 1
    """Among how many devices, of all processes together, each batch is divided."""
    coordinator: str | None = None
    """host:port of process 0, where a run has many processes."""
    num_processes: int = 1
    """How many they are."""
    process_id: int = 0
    """Which one this is, from 0."""
    patience: int = 60
    """Seconds that the processes wait for each other."""

    def __post_init__(self) -> None:
        if self.devices < 1 or self.batch % self.devices:
            raise ValueError(f"--batch is {self.batch}, not a multiple of --devices {self.devices}")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process-id is {self.process_id}, expected 0 … {self.num_processes - 1}"
            )
        if (self.coordinator is None) != (self.num_processes == 1):
            raise ValueError("--coordinator and --num-processes above 1 need each other")
        if self.devices % self.num_processes:
            raise ValueError(
                f"--devices is {self.devices}, not a multiple of --num-processes"
                f" {self.num_processes}"
            )
        if self.flow and self.devices > 1:
            raise ValueError("--flow looks at the δ of one device: leave out --devices")
        if self.num_processes > 1 and self.run_dir is None:
            raise ValueError("--num-processes above 1 needs --run-dir, a folder that all can read")
        for name in ("batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected at least 1")
        if self.save_every < 0:
            raise ValueError(f"--save-every is {self.save_every}, expected at least 0")
        if self.flow and (self.gradient != "manual" or self.checkpoint):
            raise ValueError("--flow looks at every δ: it needs --gradient manual, no --checkpoint")
        if self.checkpoint and self.gradient != "manual":
            raise ValueError("--checkpoint needs --gradient manual")
        if self.resume and self.run_dir is None:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")


def make_optimizer(name: str, learning_rate: float) -> optax.GradientTransformation:
    """optax's optimizer of that name; "momentum" is SGD with momentum 0.9."""
    if name == "momentum":
        return optax.sgd(learning_rate, momentum=0.9)
    try:
        optimizer = getattr(optax, name)(learning_rate)
        one = jnp.ones(1)
        optimizer.update(one, optimizer.init(one), one)
    except (TypeError, AttributeError):
        raise ValueError(f"--optimizer {name}: optax has no optimizer of that name") from None
    return optimizer


def make_gradient(options: Options) -> train.Gradient:
    """The function that --gradient and --checkpoint describe."""
    if options.gradient == "automatic":
        return train.automatic
    if options.checkpoint is None:
        return backprop
    every = re.fullmatch(r"every:(\d+)", options.checkpoint)
    if every:
        strategy = checkpoint.every(int(every[1]))
    else:
        strategy = checkpoint.within(
            number_of_bytes("--checkpoint", options.checkpoint, "every:K or ")
        )
    return functools.partial(backprop, checkpoint=strategy)


def number_of_bytes(option: str, text: str, other: str = "") -> int:
    """16MiB, 2GB, 100000."""
    match = re.fullmatch(r"(\d+\.?\d*) *([KMG]i?)?B?", text)
    if match is None:
        raise ValueError(f"{option} is {text!r}, expected {other}a number of bytes (16MiB)")
    return int(float(match[1]) * UNITS[match[2] or ""])


def check_memory(
    options: Options,
    network: Network,
    optimizer: optax.GradientTransformation,
    gradient: train.Gradient,
    rows: Rows,
) -> None:
    """Raise ValueError where the run needs more memory than there is, with a way that fits."""
    data_bytes = sum(array.nbytes for array in rows)
    needed = budget.need(network, optimizer, gradient, options.batch, data_bytes)
    if options.memory_limit:
        limit = number_of_bytes("--memory-limit", options.memory_limit)
    else:
        stats = jax.local_devices()[0].memory_stats()  # None on a CPU
        free = psutil.virtual_memory().available
        limit = stats["bytes_limit"] - stats["bytes_in_use"] if stats else free
        limit += data_bytes  # which is there already
    if needed.total <= limit:
        return
    room = budget.fitting_checkpoint(network, options.batch, needed, limit)
    way = (
        f"--checkpoint {room // 1024}KiB fits"
        if room
        else "no --checkpoint fits, a smaller --batch may"
    )
    raise ValueError(f"the run needs {needed}, the limit is {limit / 2**20:,.1f} MiB: {way}")


def load(options: Options) -> tuple[Network, tuple[data.Split, data.Split]]:
    """The data, of which each process reads its share, and the network that fits them."""
    share = functools.partial(sharding.own_rows, devices=options.devices)
    if options.data_dir:
        splits = data.idx_folder(options.data_dir, share)
    else:
        splits = data.digits(share=share)
    examples = splits[0]
    classes = int(examples.labels.max()) + 1
    sizes = options.sizes or (examples.inputs.shape[1], 128, classes)
    network = Network(sizes, options.hidden, options.output, options.loss)
    if sizes[0] != examples.inputs.shape[1]:
        raise ValueError(
            f"--sizes begins with {sizes[0]}, an example has {examples.inputs.shape[1]}"
        )
    for split in splits:
        data.check_labels(split.labels, sizes[-1])
    return network, splits


def to_device(split: data.Split, classes: int, mesh: Mesh | None) -> Rows:
    """Inputs and one-hot targets in rows, on the device; divided among those of a mesh."""
    targets = data.one_hot(split.labels, classes).T
    if mesh is None:
        return jnp.asarray(split.inputs), targets
    own = np.asarray(targets)[split.rows.start : split.rows.stop]
    inputs, targets = (
        sharding.divide(mesh, each, len(split.labels)) for each in (split.inputs, own)
    )
    return inputs, targets


def make_run(mesh: Mesh | None, examples: int, **fixed) -> Callable:
    """`train.run`, without the zeros that follow the rows on a mesh.

    The batches are those of one device: each is taken from the rows wherever they are, which XLA
    does with one sum of batch × (inputs + outputs) numbers over the devices a step.
    """
    if mesh is None:
        return functools.partial(train.run, **fixed)

    def run(network, optimizer, state, inputs, targets, steps):
        return train.run(
            network, optimizer, state, inputs[:examples], targets[:examples], steps=steps, **fixed
        )

    everywhere = NamedSharding(mesh, sharding.P())
    return jax.jit(
        run,
        static_argnames=("network", "optimizer", "steps"),
        donate_argnames="state",
        out_shardings=everywhere,
    )


def make_evaluate(mesh: Mesh | None) -> Callable:
    """`train.evaluate`; on a mesh, each device judges its own rows."""
    if mesh is None:
        return lambda network, params, rows, examples: train.evaluate(network, params, *rows)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def evaluate(network, params, rows, examples):
        here, everywhere = sharding.P("data"), sharding.P()
        judged = jax.shard_map(
            lambda params, rows: train.judge(network, params, *rows),
            mesh=mesh,
            in_specs=(everywhere, here),
            out_specs=here,
            check_vma=False,
        )
        costs, right = judged(params, rows)
        return jnp.mean(costs[:examples]), jnp.mean(right[:examples].astype(costs.dtype))

    return evaluate


def describe(options: Options, network: Network) -> dict[str, str]:
    """What a saved state and the run that resumes it must have in common."""
    own = ("hidden", "output", "loss", "optimizer", "learning_rate", "batch", "seed", "gradient")
    described = {name: str(getattr(options, name)) for name in own}
    return described | {
        "sizes": str(list(network.sizes)),
        "data": str(options.data_dir or "digits"),
    }


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


def main(options: Options) -> None:
    processes.join(
        options.coordinator,
        options.num_processes,
        options.process_id,
        devices=options.devices,
        patience=options.patience,
    )
    console = Console(highlight=False, quiet=options.process_id > 0)
    network, splits = load(options)
    optimizer = make_optimizer(options.optimizer, options.learning_rate)
    mesh = sharding.make_mesh(options.devices) if options.devices > 1 else None
    rows, test_rows = (to_device(split, network.sizes[-1], mesh) for split in splits)
    gradient = make_gradient(options)
    if options.devices == 1:
        check_memory(options, network, optimizer, gradient, rows)
    folder = options.run_dir or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    states, description = folder / "states", describe(options, network)
    state = train.start(network, optimizer, jax.random.key(options.seed))
    history = {name: [] for name in ("epoch", "loss", "train_accuracy", "test_accuracy", "seconds")}
    history["partial"] = []  # the losses so far of an epoch that is not over
    history["flow"] = []
    if options.resume:
        state, step, history = saving.restore(states, state, description)
        console.print(f"resumed at step {step}")
    if mesh is not None:
        gradient = functools.partial(sharding.data_parallel, mesh, gradient=gradient)
        state = state._replace(key=jax.random.key_data(state.key))  # numbers can be placed
        state = sharding.place(mesh, jax.device_get(state), sharding.P())
        state = state._replace(key=jax.random.wrap_key_data(state.key))
    if not options.resume and any(states.glob(f"*/{saving.SEAL}")):
        raise ValueError(f"{folder} holds saved states: add --resume, or take another --run-dir")
    examples, tests = (len(split.labels) for split in splits)
    if not options.batch <= examples:
        raise ValueError(f"--batch is {options.batch}, there are {examples} examples")
    console.print(
        f"{network.sizes}, {options.hidden}, {options.output}, {options.loss}; {options.optimizer}"
        f" {options.learning_rate:g}; {examples} examples, {tests} for testing"
    )

    advance = make_run(
        *(mesh, examples),
        batch=options.batch,
        gradient=gradient,
        watch=flow.active if options.flow else None,
        observe=flow.observe if options.flow else None,
    )
    evaluate = make_evaluate(mesh)
    seen = []  # by the parts of an epoch
    received = listen()
    in_epoch = examples // options.batch
    columns = (
        BarColumn(),
        TextColumn("epoch {task.completed}/{task.total}"),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.epochs, completed=len(history["epoch"]))
        while len(history["epoch"]) < options.epochs and not processes.agree(received):
            begin = time.perf_counter()
            steps = min(STEPS_AT_ONCE, in_epoch - int(state.step) % in_epoch)
            state, metrics = advance(network, optimizer, state, *rows, steps=steps)
            metrics = jax.device_get(metrics)
            seen += [(metrics.seen, metrics.watched)] if options.flow else []
            stop_if_not_finite(network, metrics, int(state.step))
            history["partial"] += [float(loss) for loss in metrics.loss]
            history["seconds"].append((time.perf_counter() - begin) / steps * in_epoch)
            if int(state.step) % in_epoch == 0:
                for name, own, many in (("train", rows, examples), ("test", test_rows, tests)):
                    right = evaluate(network, state.params, own, many)[1]
                    history[f"{name}_accuracy"].append(float(right))
                end_epoch(history)
                if options.flow:
                    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *seen)
                    by_layer = flow.over_epoch(*whole)
                    history["flow"].append({k: v.tolist() for k, v in by_layer.items()})
                    seen = []
                progress.update(task, advance=1, description=summary(history))
                every = options.save_every
                if every and len(history["epoch"]) % every == 0 and options.process_id == 0:
                    saving.save(states, state, description, history)
    if number := processes.agree(received):
        if options.process_id == 0:
            saving.save(states, state, description, history)
        console.print(f"stopped at step {int(state.step)}, saved; go on with --resume")
        sys.exit(128 + number)
    if options.process_id == 0:
        report(options, network, state.params, history, folder, console)


def end_epoch(history: dict) -> None:
    """Turn the losses of an epoch's steps into a line of the history."""
    history["epoch"].append(len(history["epoch"]) + 1)
    history["loss"].append(float(np.mean(history["partial"])))
    history["partial"] = []


def summary(history: dict) -> str:
    return f"loss {history['loss'][-1]:.4f}  test accuracy {history['test_accuracy'][-1]:.2%}"


def report(
    options: Options,
    network: Network,
    params: Params,
    history: dict,
    folder: Path,
    console: Console,
) -> None:
    """Leave the metrics and the figure in the run's folder, and say where.

    The digest of the parameters tells whether two runs ended in the same bits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in dataclasses.asdict(options).items()}
    digest = hashlib.sha256(
        b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
    )
    record = {
        "options": settings,
        "sizes": network.sizes,
        "parameters_sha256": digest.hexdigest(),
        "history": history,
    }
    (folder / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
    plots.learning_curve(history, folder / "learning_curve.png")
    if options.flow:
        by_name = {k: [epoch[k] for epoch in history["flow"]] for k in history["flow"][0]}
        plots.gradient_flow(by_name, folder / "gradient_flow.png")
    each = np.median(history["seconds"])  # of an epoch, from those of its parts
    console.print(
        f"test accuracy {history['test_accuracy'][-1]:.2%}, "
        f"{each * 1e3:.0f} ms an epoch; see {folder}/"
    )


def stop_if_not_finite(network: Network, metrics: train.Metrics, step: int) -> None:
    """Exit with status 1, saying at which step and in which layer, where a number went bad."""
    bad = jnp.flatnonzero(metrics.bad_layer)
    if bad.size:
        l = int(metrics.bad_layer[bad[0]])
        where = f"the gradient of layer {l}" if l <= network.depth else "the loss"
        sys.exit(
            f"step {step - len(metrics.loss) + int(bad[0]) + 1}: {where} is not finite. "
            "Try a smaller --learning-rate; jaxbackprop.inspect shows which operation did it."
        )


def run(options: Options) -> None:
    """main, with what goes wrong in one sentence."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a full disk, once for each array
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        main(options)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    except jax.errors.JaxRuntimeError as error:
        if options.num_processes == 1:
            raise
        sys.exit(f"{Path(__file__).name}: another process is lost: {error}")


if __name__ == "__main__":
    run(tyro.cli(Options))
