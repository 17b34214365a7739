"""Many processes that train together: they meet, and stop after the same step.

jax.distributed connects them and notices when one is lost; each then ends with an error.
"""

import os
import socket
import time

import jax
import numpy as np
from jax.experimental import multihost_utils


def join(
    coordinator: str | None, processes: int, process: int, *, devices: int, patience: int
) -> None:
    """Meet the other processes, before anything else is done with jax.

    Process 0 listens at the coordinator, host:port. `devices` are those of all processes; host
    devices stand in where there is no accelerator. Raises ValueError where the processes have not
    met within `patience` seconds.
    """
    if devices > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", devices // processes)
        except RuntimeError:
            raise ValueError("the processes meet before anything else is done with jax") from None
    if processes == 1:
        return
    if process:
        _reach(str(coordinator), patience)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=patience,
        )
    except RuntimeError as error:
        raise ValueError(f"{processes} processes did not meet at {coordinator}: {error}") from None


def _reach(coordinator: str, patience: int) -> None:
    """Wait for process 0 to listen: jax's own wait ends the program without a sentence."""
    host, _, port = coordinator.rpartition(":")
    if not port.isdecimal():
        raise ValueError(f"coordinator is {coordinator!r}, expected host:port")
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(f"coordinator {coordinator}: {error}") from None
            time.sleep(0.2)


def agree(received: list[int]) -> int:
    """The signal that has reached any of the processes, or 0; all of them must ask."""
    own = received[0] if received else 0
    if jax.process_count() == 1:
        return own
    return int(multihost_utils.process_allgather(np.int32(own)).max())
