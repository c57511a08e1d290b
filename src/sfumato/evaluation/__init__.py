"""Figures of models and samples with everything that they depend on: evaluation, reports, comparison, sweeps.

`evaluate.py` is `sf.evaluate`; `report.py` what it writes; `compare.py` reads several; `sweep.py` makes many. `subject.py` is what is
evaluated (a model that is sampled, or samples that are there), `reference.py` the data that it is held against, `measures.py` which figures
there are, `watch.py` a figure during training. The mathematics is in `sfumato.metrics`.
"""
