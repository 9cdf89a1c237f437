"""Thin translations of the Trainer's hooks to the tracker. Nothing here measures."""

from lightning_glassy.callbacks.aging import AgingMonitor

__all__ = ["AgingMonitor"]
