"""Write a growing record to files and to each Lightning logger.

======================================  ===============================================================================
tag                                     content
======================================  ===============================================================================
``glassy/<observable>/tw_<t_w>``        the curve of one waiting time against the lag, for the group ``"all"``
``glassy/<observable>/<group>/tw_...``  the same for another group: the 16 groups with the most parameters
``glassy_figures/<observable>``         all curves of the group ``"all"`` on a logarithmic axis of lags, drawn after the
                                        training
``glassy_figures/<panel>``              the same for what other callbacks have measured; the names are those of
                                        :func:`lightning_glassy.plotting.panels.panels`
======================================  ===============================================================================

``glassy`` is the name of the monitor. If a logger has a prefix, all tags begin with it, as in ``fold1-glassy/msd/...``.
The registry of observables marks the observables with curves (``logged``): the mean squared displacement, the
decorrelation, the non-Gaussian parameter and each overlap. It also marks the observables with figures (``drawn``): the
same list without the decorrelation. The name of an overlap contains its threshold, such as ``overlap_0.001``. With
replicas, a curve is the mean over the replicas.

=====================  =================================  ===========================  ================================
logger                 curves                             figures                      record
=====================  =================================  ===========================  ================================
``TensorBoardLogger``  scalars; the step is the lag       images                       ``glassy_record/...``, in parts:
                                                                                       the data of the tab Glassy
``WandbLogger``        metrics; their x axis is           images                       ``glassy_table``, artifact
                       ``glassy/lag``                                                  ``glassy-<run id>``
``MLFlowLogger``       metrics; the step is the lag       artifacts                    artifacts
                                                          ``glassy/<figure>.png``      ``glassy/aging_record.*``
``CometLogger``        metrics; the step is the lag       figures                      assets ``glassy/aging_record.*``
``LitLogger``          series; the step is the lag        series of images             files ``glassy/aging_record.*``
``CSVLogger``          ``glassy.csv``, the table
any other              ``log_metrics``; the step is the
                       training step t_w + t
=====================  =================================  ===========================  ================================

Loggers get new points every few seconds, so that they cost less than the measurement. They also get them at each
checkpoint, at the end, and after an exception. A run that is killed has lost the points of the last seconds. Curves of
many groups would be thousands of tags, so these loggers have those of the 16 largest groups. The record, its files, the
table of a ``CSVLogger`` and the tab Glassy have all groups. Figures are drawn after the last step, when all callbacks
have ended the training. A killed run has none: the tab shows its curves at any time, and ``lightning-glassy report``
draws its figures from the files.

To add a logger, write a class in this package and add its name to :mod:`lightning_glassy.loggers.dispatch`.
"""
