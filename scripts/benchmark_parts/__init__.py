"""What the benchmarks measure, and how it is shown."""
