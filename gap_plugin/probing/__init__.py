"""Linear probing: the features of a frozen network, stored once.

Reading order: :mod:`.store` (files), :mod:`.extraction` (what fills them),
:mod:`.probe` (what trains on them).
"""

from .extraction import SPLITS, FixedPart, extract
from .probe import check_frozen, probe, probe_model, save_whole
from .store import FeatureStore, StoreWriter, remove

__all__ = [
    'SPLITS', 'FeatureStore', 'FixedPart', 'StoreWriter', 'check_frozen',
    'extract', 'probe', 'probe_model', 'remove', 'save_whole'
]
