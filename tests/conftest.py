"""What every test shares: how two gradients are called equal, and the precision switch."""

import jax
import pytest


@pytest.fixture
def x64():
    """Allow float64 for one test."""
    with jax.enable_x64(True):
        yield
