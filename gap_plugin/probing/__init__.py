"""Neck and head, trained on stored features.

Reading order: :mod:`.rows` (features as batches), :mod:`.parts` (what is
trained), :mod:`.candidates` (that of several settings), :mod:`.optimiser`,
:mod:`.schedule`, :mod:`.metrics`, :mod:`.choice` (settings and folds),
:mod:`.curves`, :mod:`.training` (the probe), :mod:`.neighbours` (k-NN),
:mod:`.few_labels` (scikit-learn's classifiers).
"""

from .choice import DINOV2_RATES, grid, interval
from .few_labels import few_shot, logistic
from .neighbours import knn
from .parts import check_frozen, probe_model, save_whole
from .training import ProbeResult, probe

__all__ = [
    'DINOV2_RATES', 'ProbeResult', 'check_frozen', 'few_shot', 'grid',
    'interval', 'knn', 'logistic', 'probe', 'probe_model', 'save_whole'
]
