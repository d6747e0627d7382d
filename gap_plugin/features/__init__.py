"""The features of a frozen network, stored once.

Reading order: :mod:`.store` (files), :mod:`.fixed_part` (what of a model
makes features), :mod:`.images` (of what), :mod:`.fingerprint` (what stands for
all that makes them), :mod:`.engines` (what runs the network),
:mod:`.extraction` (the pass).
"""

from .engines import ENGINES, Engine, fastest
from .extraction import Extraction, extract
from .fixed_part import FixedPart
from .images import SPLITS
from .store import FeatureStore, remove
from .store_writer import StoreWriter

__all__ = [
    'ENGINES', 'SPLITS', 'Engine', 'Extraction', 'FeatureStore', 'FixedPart',
    'StoreWriter', 'extract', 'fastest', 'remove'
]
