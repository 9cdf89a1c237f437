"""Studies that use the package as a user would. Each is a script: ``python -m examples.<name>``."""
