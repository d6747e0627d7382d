"""Where images come from, and what happens to them ahead of the network.

Reading order: :mod:`.folder` (what images there are), :mod:`.loading` (files
that open), :mod:`.pipelines` (timm's preprocessing as stock transforms),
:mod:`.transforms` (the same, following the network), :mod:`.digits` (data
that needs no download).
"""

from .digits import Digits
from .pipelines import timm_test_pipeline, timm_train_pipeline
from .transforms import CenterPad, TimmTestTransform, TimmTrainTransform

__all__ = [
    'CenterPad', 'Digits', 'TimmTestTransform', 'TimmTrainTransform',
    'timm_test_pipeline', 'timm_train_pipeline'
]
