"""Make a record from existing checkpoints. No code in them is executed, and each byte is read once.

========================  ====================================================================================
module                    task
========================  ====================================================================================
``measure``               :func:`measure_checkpoints`, which combines all of these
``layouts``               finds the checkpoints in files and directories, and opens them as :class:`Content`
``steps``                 finds the step of each checkpoint
``weights``               chooses the weights of each checkpoint, and the tensors that all have in common
``pairs``                 chooses the pairs of checkpoints
``one_pass``              reads all checkpoints block by block, and sums all pairs of a block
``unfinished``            keeps the sums of an interrupted run. ``progress`` reports how far it is
``doubts``                finds doubts about the displacements
``stored``, ``strided``   tensors in files. ``handles`` reads them when they are needed
``pickled``, ``archive``  files of ``torch.save``, read by ``unpickle`` as data
``safetensor_files``      ``.safetensors``
``distributed``           directories of ``torch.distributed.checkpoint``
========================  ====================================================================================
"""

from lightning_glassy.checkpoints.measure import measure_checkpoints

__all__ = ["measure_checkpoints"]
