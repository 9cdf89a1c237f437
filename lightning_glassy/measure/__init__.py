"""Capture weights on their device, measure them there, and fill a record. This package imports torch, not lightning.

=======================  =====================================================================================
module                   task
=======================  =====================================================================================
``select``               selects parameters and their groups
``layout``               lays out their coordinates for measuring: buckets, tiles, cells, samples
``shards``               finds the part of each parameter that this process holds
``memory``               plans how many coordinates fit
``snapshots``            keeps earlier weights
``moments``              sums over the coordinates at one event: the contract and its implementations
``readback``             brings the sums to the host without waiting for the device
``tracker``              :class:`AgingTracker`, which combines all of these
``resume``               packs the state for a checkpoint. Large snapshots go to ``snapshot_files``
``optimizers``           describes optimisers in a record
=======================  =====================================================================================
"""
