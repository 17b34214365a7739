"""What the options of scripts/train.py describe: a network, its data, and how it learns."""

import difflib
import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
from train_parts.options import Options


class Task(NamedTuple):
    """What learns, how, and from what."""

    network: Network
    optimizer: optax.GradientTransformation
    gradient: train.Gradient
    examples: rows.Rows
    tests: rows.Rows
    guess: float  # the test accuracy of who always says the commonest class


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
    tests = splits[1].labels
    return Task(network, optimizer, gradient, *divided, np.bincount(tests).max() / len(tests))


def load(options: Options) -> tuple[Network, tuple[data.Split, data.Split]]:
    """The network, and the data that fit it."""
    share = functools.partial(rows.share, devices=options.devices)
    if options.data_dir:
        splits = data.idx_folder(options.data_dir, share)
    else:
        splits = data.digits(share=share)
    splits = from_zero(splits, options.sizes and options.sizes[-1])
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


def from_zero(
    splits: tuple[data.Split, data.Split], classes: int | None
) -> tuple[data.Split, data.Split]:
    """Labels that begin at 1, as EMNIST's letters do, are taken as classes from 0 on."""
    least = min(split.labels.min() for split in splits)
    most = int(max(split.labels.max() for split in splits))
    if least != 1 or classes not in (None, most):
        return splits
    warnings.warn(f"labels begin at 1: 1 … {most} are classes 0 … {most - 1}", stacklevel=2)
    train, test = (split._replace(labels=split.labels - 1) for split in splits)
    return train, test


def make_optimizer(name: str, learning_rate: float) -> optax.GradientTransformation:
    """optax's optimizer of that name; "momentum" is SGD with momentum 0.9."""
    if name == "momentum":
        return optax.sgd(learning_rate, momentum=0.9)
    maker = getattr(optax, name, None)
    if not callable(maker):
        near = difflib.get_close_matches(name, dir(optax), 1)
        hint = f", but {near[0]}" if near else ""
        raise ValueError(f"--optimizer {name}: optax has nothing of that name{hint}")
    try:
        optimizer = maker(learning_rate)
        one = jnp.ones(1)
        optimizer.update(one, optimizer.init(one), one)
    except Exception as error:
        raise ValueError(f"--optimizer {name}: {type(error).__name__} in optax: {error}") from error
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
