"""Reproductions of published results. Run each with ``python -m examples.studies.<name>``."""
