"""The benchmark suite behind ``benchmarks/run.py``; figures are defined in ``README.md``."""
