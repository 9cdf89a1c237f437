r"""How it is measured: the sums over parameters of one event.

The contract of an implementation, so that one can be checked against another:

``implementation(parameters, overlap_thresholds)`` has a method ``own_sums()``, the sums of w^2 and of w as one tensor
``[n_cell, 2]`` per bucket of ``parameters.buckets``, which a snapshot keeps from its capture. It is called with a
list of live snapshots and returns one tensor per bucket, on the bucket's device, ``[n_cell, n_snapshot, n_moment]``.
With :math:`w_i` the current weights, :math:`s_i` those of the snapshot and :math:`d_i = w_i - s_i`, the last axis
holds

    =========================  ==========================================================
    0 ... 6                    the sums named by ``lightning_glassy.record.MOMENTS``:
                               :math:`\sum d^2, \sum d^4, \sum ws, \sum w^2, \sum s^2, \sum w, \sum s`
    7 ... 6 + n_threshold      number of coordinates with :math:`|d| \le \epsilon`, one each
                               (to within the rounding of :math:`\epsilon` to the precision of the weights)
    =========================  ==========================================================

* :math:`d` is a difference of weights, never :math:`w^2 + s^2 - 2ws`: that would lose everything at short lags.
* Weights of fewer bits than float32 are widened first; float64 weights are measured in float64. Sums within a tile may
  be float32, sums over tiles are float64 (float32 on MPS, which has no float64). The relative error of a sum of
  positive terms is at most 1e-6, the error of :math:`\sum ws` at most 1e-6 of :math:`(\sum w^2 + \sum s^2)/2`.
* Nothing waits for the device, no random number is drawn, autograd sees nothing, and the temporary memory is at most
  8 MiB per device, whatever the size of the model.
"""

from __future__ import annotations

from lightning_glassy.moments.eager import EagerMoments

__all__ = ["EagerMoments"]
