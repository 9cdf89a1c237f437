"""Short scripts to copy. Run each with ``python -m examples.<name>``."""
