"""Linear probing: the features of a frozen network, stored once.

Reading order: :mod:`.store` (files), :mod:`.fixed_part` (what of a model
makes features), :mod:`.extraction` (the pass), :mod:`.batches` (features as a
dataloader), :mod:`.keep_best` (checkpoints), :mod:`.probe` (training).
"""

from .extraction import SPLITS, extract
from .fixed_part import FixedPart
from .probe import check_frozen, probe, probe_model, save_whole
from .store import FeatureStore, StoreWriter, remove

__all__ = [
    'SPLITS', 'FeatureStore', 'FixedPart', 'StoreWriter', 'check_frozen',
    'extract', 'probe', 'probe_model', 'remove', 'save_whole'
]
