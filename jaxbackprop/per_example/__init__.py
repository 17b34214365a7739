"""One gradient an example: norms, clipped means, moments and noise scale, without forming them."""

from jaxbackprop.per_example.planning import LeafPlan, Plan, plan
from jaxbackprop.per_example.quantities import (
    Clipped,
    NoiseScale,
    clipped_mean,
    gradient_noise_scale,
    gradient_norms,
    gradients,
    second_moment,
    squared_norms,
    variance,
    weighted_mean,
)

__all__ = [
    "Clipped",
    "LeafPlan",
    "NoiseScale",
    "Plan",
    "clipped_mean",
    "gradient_noise_scale",
    "gradient_norms",
    "gradients",
    "plan",
    "second_moment",
    "squared_norms",
    "variance",
    "weighted_mean",
]
