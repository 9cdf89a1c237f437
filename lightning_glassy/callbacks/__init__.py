"""Thin translations of the hooks of a Trainer, and of Fabric, to the tracker. Nothing here measures."""

from lightning_glassy.callbacks.aging import AgingMonitor
from lightning_glassy.callbacks.fabric import FabricAgingMonitor

__all__ = ["AgingMonitor", "FabricAgingMonitor"]
