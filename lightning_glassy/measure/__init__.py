"""The torch half: capture weights on their device, measure them there, and fill a record. It imports no lightning.

=======================  =====================================================================================
module                   what it does
=======================  =====================================================================================
``select``               selects parameters and their groups
``layout``               lays their coordinates out for measuring: buckets, tiles, cells, samples
``shards``               finds the part of each parameter that this process holds
``memory``               plans how many coordinates fit
``snapshots``            keeps earlier weights
``moments``              sums over the coordinates at one event; the contract and its implementations
``readback``             brings the sums to the host without waiting for the device
``tracker``              :class:`AgingTracker`, which puts all of these together
``resume``               packs what a checkpoint needs to go on; large snapshots go to ``snapshot_files``
``optimizers``           describes optimisers in a record
=======================  =====================================================================================
"""
