"""The features of a frozen network, stored once.

Reading order: :mod:`.store` (files), :mod:`.fixed_part` (what of a model
makes features), :mod:`.images` (of what), :mod:`.extraction` (the pass).
"""

from .extraction import extract
from .fixed_part import FixedPart
from .images import SPLITS
from .store import FeatureStore, remove
from .store_writer import StoreWriter

__all__ = [
    'SPLITS', 'FeatureStore', 'FixedPart', 'StoreWriter', 'extract', 'remove'
]
