"""Neck and head, trained on stored features.

Reading order: :mod:`.batches` (features as a dataloader), :mod:`.evaluation`
(metrics of whole batches), :mod:`.fused` (BN and a linear layer as one
product), :mod:`.stored_model` (what is left to train), :mod:`.candidates`
(several at once), :mod:`.keep_best` (checkpoints), :mod:`.training` (the
probe), :mod:`.few_labels` (k-NN and few-shot).
"""

from .candidates import grid
from .few_labels import few_shot, knn
from .stored_model import check_frozen, probe_model
from .training import ProbeResult, probe, save_whole

__all__ = [
    'ProbeResult', 'check_frozen', 'few_shot', 'grid', 'knn', 'probe',
    'probe_model', 'save_whole'
]
