"""What every test shares: compiled programs, bounded memory, switches that a test may ask for."""

import gc
import os

import jax
import jaxtyping
import machine_code
import psutil
import pytest
import worker_memory

if machine_code.KNOWN:
    os.environ.setdefault("XLA_FLAGS", machine_code.plain_flags())

LONGEST = [
    f"test_{name}"
    for name in (
        *("campaigns", "processes", "explorer", "checkpoint", "per_example", "watch", "budget"),
        *("graph_programs", "check_campaign", "check", "locate", "inspect", "scripts", "backprop"),
        *("sharding", "graph_harness", "graph_custom", "notebooks"),
    )
]
SLOW = {
    f"test_{name}"
    for name in (
        *("campaigns", "processes", "sharding", "saving", "scripts", "explorer", "benchmark"),
        *("package", "docs", "checkpoint", "check_campaign", "graph_harness"),
        *("graph_programs", "graph_devices", "inspect_programs", "locate", "unformed"),
        *("per_example", "per_example_models", "budget", "flow", "watch", "backprop"),
        *("check", "inspect", "inspect_any", "graph_custom", "graph_linalg", "notebooks"),
        *("train_script", "rows"),
    )
}


def pytest_configure(config):
    """Compiled programs are kept on disk: for the other workers, the scripts, and the next run."""
    config.pluginmanager.register(worker_memory)
    kept = config.rootpath / ".pytest_cache" / f"jax-{jax.__version__}"
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers():
    """As many workers as there are cores, and as have room in three quarters of the memory."""
    room = psutil.virtual_memory().total * 3 // 4 // worker_memory.MOST
    return max(1, min((yield), room))


def pytest_collection_modifyitems(items):
    """The longest modules come first: a worker that has nothing left waits for the other's last.

    Those that start processes, or go through many programs, are no daily round.
    """
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else 99)
    for item in items:
        if item.path.stem in SLOW or item.path.parent.name == "docs":
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """What is imported by now stays: the search for garbage, of which tracing makes much, leaves
    it out, and is made less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def x64():
    """Allow float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def untyped():
    """Leave out the run-time checks of shape annotations, which users do not have either."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
