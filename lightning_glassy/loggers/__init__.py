"""Write a growing record to files and to each Lightning logger.

=============================  ========================================================================================
tag                            content
=============================  ========================================================================================
``glassy/moved_percent``       rms displacement between a tenth of the step and the step, in % of the rms weight
``glassy/aging_rate``          the aging rate over all waiting times so far: 0 is no aging, 1 is full aging
``glassy/mu``                  the aging exponent at the end, if the record has one
``glassy/<one>/<group>``       the same three for each group that ``log_groups`` names
``glassy_figures/<name>``      the curves of an observable on a logarithmic axis of lags, at the end. Then the figures
                               of the measurements of other callbacks, by the names of
                               :func:`lightning_glassy.plotting.panels.panels`
``glassy/<observable>/tw_..``  only with ``curves="scalars"``: the curve of one waiting time against the lag
=============================  ========================================================================================

``glassy`` is the name of the monitor. If a logger has a prefix, all tags begin with it, as in ``fold1-glassy/mu``. The
step of the first three tags is the training step. With replicas, they are means over the replicas.

With ``curves="scalars"``, the name of a group comes before ``tw_``, unless it is ``"all"``. The registry of observables
marks the observables with such curves (``logged``): the mean squared displacement, the decorrelation, the non-Gaussian
parameter and each overlap. It also marks the observables with figures (``drawn``): the same list without the
decorrelation. The name of an overlap contains its threshold, such as ``overlap_0.001``.

=====================  ====================================  ===========================  ==============================
logger                 curves                                figures                      record
=====================  ====================================  ===========================  ==============================
``TensorBoardLogger``  the tab Glassy                        images                       ``glassy_record/...``, in
                                                                                          parts: the data of the tab
``WandbLogger``        the line chart ``glassy_curves``      images                       ``glassy_table``, artifact
                                                                                          ``glassy-<run id>``
``MLFlowLogger``                                             artifacts                    artifacts
                                                             ``glassy/<figure>.png``      ``glassy/aging_record.*``
``CometLogger``                                              figures                      assets
                                                                                          ``glassy/aging_record.*``
``LitLogger``                                                series of images             files
                                                                                          ``glassy/aging_record.*``
``CSVLogger``          ``glassy.csv``, the table
any other
=====================  ====================================  ===========================  ==============================

With ``curves="scalars"``, the step of a curve is the lag. In W&B, ``glassy/lag`` is its x axis. A logger that this
package does not know gets the curve against the training step t_w + t. A ``CSVLogger`` gets the table only.

Loggers get new values every few seconds, so that they cost less than the measurement. They also get them at each
checkpoint, at the end, and after an exception. A killed run loses the values of the last seconds. Curves of many groups
would be thousands of tags, so loggers get as scalars only the curves of the 16 largest groups. The record, its files,
the table of a ``CSVLogger`` and the tab Glassy have all groups. Figures are drawn after the last step, when all
callbacks have ended the training. A killed run has no figures: the tab shows its curves at any time, and
``lightning-glassy report`` draws its figures from the files.

To add a logger, write a class in this package and add its name to :mod:`lightning_glassy.loggers.dispatch`.
"""
