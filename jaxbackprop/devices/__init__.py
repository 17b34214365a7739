"""Many devices: how parameters and examples are divided, and processes that meet."""
