"""The options of scripts/train.py, and the task that they describe."""

import dataclasses
import functools
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import psutil

from jaxbackprop import (
    Network,
    backprop,
    data,
    loss,
    memory,
    rows,
    sharding,
    train,
    value_and_grad,
)
from jaxbackprop.checkpoint.descriptions import described, number_of_bytes
from jaxbackprop.network import Params


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
    gradient: Literal["manual", "graph", "automatic"] = "manual"
    """The four equations, the walk of the loss's graph, or jax.grad."""
    checkpoint: str | None = None
    """Less memory: "every:12" keeps every 12th activation, "16MiB" what fits that many bytes."""
    memory_limit: str | None = None
    """Refuse a run that needs more bytes ("2GiB"). Default: what is free on the device."""
    flow: bool = False
    """Draw gradients, errors, steps and dead units of each layer by epoch (of one that a signal
    split, the part after it)."""
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
        if self.checkpoint and self.gradient == "automatic":
            raise ValueError("--checkpoint needs --gradient manual or graph")
        if self.gradient == "graph" and self.devices > 1:
            raise ValueError("--gradient graph is for one device: leave out --devices")
        if self.resume and self.run_dir is None:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")


class Task(NamedTuple):
    """What learns, how, and from what."""

    network: Network
    optimizer: optax.GradientTransformation
    gradient: train.Gradient
    examples: rows.Rows
    tests: rows.Rows


def make_task(options: Options) -> Task:
    """Read the data, of which each process has its share, and put them on the devices.

    Raises ValueError where options and data do not fit each other or the memory.
    """
    network, splits = load(options)
    optimizer = make_optimizer(options.optimizer, options.learning_rate)
    gradient = make_gradient(options)
    check_memory(options, network, optimizer, gradient, splits)
    mesh = sharding.make_mesh(options.devices)
    divided = (rows.divide(mesh, split, network.sizes[-1]) for split in splits)
    return Task(network, optimizer, gradient, *divided)


def load(options: Options) -> tuple[Network, tuple[data.Split, data.Split]]:
    """The network, and the data that fit it."""
    share = functools.partial(rows.share, devices=options.devices)
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
    if not options.batch <= len(examples.labels):
        raise ValueError(f"--batch is {options.batch}, there are {len(examples.labels)} examples")
    return network, splits


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
    if options.gradient == "graph":
        return of_graph(options.checkpoint)
    if options.checkpoint is None:
        return backprop
    return functools.partial(backprop, checkpoint=described(options.checkpoint))


def of_graph(checkpoint: str | None) -> train.Gradient:
    """The loss and its gradient by the walk of its graph, in the memory that is described."""

    def gradient(network: Network, params: Params, x: jax.Array, y: jax.Array) -> tuple:
        return value_and_grad(functools.partial(loss, network), checkpoint=checkpoint)(params, x, y)

    value_and_grad(loss, checkpoint=checkpoint)  # refuses what is no description
    return gradient


def check_memory(
    options: Options,
    network: Network,
    optimizer: optax.GradientTransformation,
    gradient: train.Gradient,
    splits: tuple[data.Split, ...],
) -> None:
    """Raise ValueError where the run needs more memory than there is, with a way that fits.

    Of one device: with more, each holds less than that.
    """
    if options.devices > 1:
        return
    examples = sum(len(split.labels) for split in splits)
    data_bytes = 4 * examples * (network.sizes[0] + network.sizes[-1])
    needed = memory.need(network, optimizer, gradient, options.batch, data_bytes)
    if options.memory_limit:
        limit = number_of_bytes(options.memory_limit)
    else:
        stats = jax.local_devices()[0].memory_stats()  # None on a CPU
        free = psutil.virtual_memory().available
        limit = stats["bytes_limit"] - stats["bytes_in_use"] if stats else free
    if needed.total <= limit:
        return
    room = memory.fitting_checkpoint(network, options.batch, needed, limit)
    way = (
        f"--checkpoint {room // 1024}KiB fits"
        if room
        else "no --checkpoint fits, a smaller --batch may"
    )
    raise ValueError(f"the run needs {needed}, the limit is {limit / 2**20:,.1f} MiB: {way}")


def describe(options: Options, network: Network) -> dict[str, str]:
    """What a saved state and the run that resumes it must have in common."""
    own = ("hidden", "output", "loss", "optimizer", "learning_rate", "batch", "seed", "gradient")
    described = {name: str(getattr(options, name)) for name in own}
    return described | {
        "sizes": str(list(network.sizes)),
        "data": str(options.data_dir or "digits"),
    }
