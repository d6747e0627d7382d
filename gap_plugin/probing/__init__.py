"""Linear probing: the features of a frozen network, stored once.

Reading order: :mod:`.store` (files), :mod:`.extraction` (what fills them).
"""

from .extraction import FixedPart, extract
from .store import FeatureStore, StoreWriter, remove

__all__ = ['FeatureStore', 'FixedPart', 'StoreWriter', 'extract', 'remove']
