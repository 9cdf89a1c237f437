"""Measurements of the package's cost. ``python -m benchmarks`` runs all, ``python -m benchmarks moments`` runs one."""
