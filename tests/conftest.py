"""What every test shares: compiled programs, bounded memory, switches that a test may ask for."""

import ctypes
import gc
import os
import sys

import jax
import jaxtyping
import psutil
import pytest

MIB = 2**20
FULL = 1000 * MIB  # of a worker: compiled programs are let go
MOST = 1536 * MIB  # what no test may leave behind


def pytest_configure(config):
    """Compiled programs are kept on disk: for the other workers, the scripts, and the next run."""
    kept = config.rootpath / ".pytest_cache" / f"jax-{jax.__version__}"
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def _within_memory():
    """The compiled programs of earlier tests are let go in time; a test that needs more fails."""
    yield
    if psutil.Process().memory_info().rss < FULL:
        return
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    used = psutil.Process().memory_info().rss
    assert used < MOST, f"a worker of the suite has come to {used / MIB:.0f} MiB"


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
