"""Data sets of benchmarks: where they come from and how they are read."""
