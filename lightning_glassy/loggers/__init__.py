"""How a growing record reaches files and each Lightning logger."""
