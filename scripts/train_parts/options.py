"""The options of scripts/train.py, and which of them go together."""

import dataclasses
from pathlib import Path
from typing import Literal

from parts.arguments import check


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
    log: Literal["csv", "tensorboard", "wandb"] | None = None
    """Where each epoch's numbers go besides, as it ends."""
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
        check(
            self,
            learning_rate=0,
            batch=1,
            epochs=1,
            save_every=0,
            devices=1,
            num_processes=1,
            patience=1,
        )
        if self.batch % self.devices:
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
        if self.flow and (self.gradient != "manual" or self.checkpoint):
            raise ValueError("--flow looks at every δ: it needs --gradient manual, no --checkpoint")
        if self.checkpoint and self.gradient == "automatic":
            raise ValueError("--checkpoint needs --gradient manual or graph")
        if self.gradient == "graph" and self.devices > 1:
            raise ValueError("--gradient graph is for one device: leave out --devices")
        if self.resume and self.run_dir is None:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
