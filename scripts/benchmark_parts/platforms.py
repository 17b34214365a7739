"""Where everything runs, and how its products are rounded: the same for every peer."""

import importlib.util

import jax


def choose(platform: str | None, tf32: bool) -> str:
    """Run on the platform that is asked for, or on what jax finds; ValueError where it is not here.

    On a GPU products of float32 numbers are in float32, or all in TF32, as jax and PyTorch have it
    by default in turn: the one rounds to 11 bits unless told otherwise, the other does not.
    """
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    here = jax.default_backend()
    if platform not in (None, here):
        raise ValueError(
            f"--platform {platform}: jax finds {here} here; for an NVIDIA card "
            'pip install "jax[cuda13]", for a TPU "jax[tpu]"'
        )
    if tf32 and here != "gpu":
        raise ValueError(f"--tf32 is of NVIDIA's cards, and this is a {here}")
    if here == "gpu":
        precision = "tensorfloat32" if tf32 else "highest"
        jax.config.update("jax_default_matmul_precision", precision)
        if importlib.util.find_spec("torch"):
            import torch

            torch.set_default_device("cuda")
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return here
