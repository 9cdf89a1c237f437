"""What the package costs, measured: ``python -m benchmarks`` runs all, ``python -m benchmarks moments`` one of them."""
