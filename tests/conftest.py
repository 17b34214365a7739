"""What every test shares: the switches that a test may ask for."""

import jax
import jaxtyping
import pytest


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
