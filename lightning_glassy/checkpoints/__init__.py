"""Make a record from checkpoints that are there already. Nothing in them is executed, and each byte is read once.

========================  ====================================================================================
module                    what it does
========================  ====================================================================================
``measure``               :func:`measure_checkpoints`, which puts all of these together
``layouts``               finds the checkpoints in files and directories, and opens them as :class:`Content`
``steps``                 finds the step of each
``weights``               chooses the weights of each, and the tensors that all have in common
``pairs``                 chooses the pairs of checkpoints
``one_pass``              reads all of them block by block, and sums all pairs of a block
``unfinished``            keeps the sums of an interrupted run; ``progress`` describes how far it is
``doubts``                finds doubts about the displacements
``stored``, ``strided``   tensors in files, which are read when they are needed, through ``handles``
``pickled``, ``archive``  files of ``torch.save``, read by ``unpickle`` as data
``safetensor_files``      ``.safetensors``
``distributed``           directories of ``torch.distributed.checkpoint``
========================  ====================================================================================
"""

from lightning_glassy.checkpoints.measure import measure_checkpoints

__all__ = ["measure_checkpoints"]
