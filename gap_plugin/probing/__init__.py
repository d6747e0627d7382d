"""Linear probing: the features of a frozen network, stored once.

Reading order: :mod:`.store` (files), :mod:`.fixed_part` (what of a model
makes features), :mod:`.images` (of what), :mod:`.extraction` (the pass),
:mod:`.batches` (features as a dataloader), :mod:`.evaluation` (metrics of
whole batches), :mod:`.fused` (BN and a linear layer as one product),
:mod:`.stored_model` (what is left to train), :mod:`.candidates` (several at
once), :mod:`.keep_best` (checkpoints), :mod:`.probe` (training),
:mod:`.few_labels` (k-NN and few-shot).
"""

from .candidates import grid
from .extraction import extract
from .few_labels import few_shot, knn
from .fixed_part import FixedPart
from .images import SPLITS
from .probe import ProbeResult, probe, save_whole
from .store import FeatureStore, StoreWriter, remove
from .stored_model import check_frozen, probe_model

__all__ = [
    'SPLITS', 'FeatureStore', 'FixedPart', 'ProbeResult', 'StoreWriter',
    'check_frozen', 'extract', 'few_shot', 'grid', 'knn', 'probe',
    'probe_model', 'remove', 'save_whole'
]
