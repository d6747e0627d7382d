"""Where images come from, and what happens to them ahead of the network.

Reading order: :mod:`.folder` (what images there are), :mod:`.binding` (which
network a pipeline is for), :mod:`.loading` (a file as an array),
:mod:`.pipelines` (timm's preprocessing as stock transforms),
:mod:`.transforms` (the same, following that network), :mod:`.digits` (data
that needs no download).
"""

from .binding import NetworkTransform, bind_pipeline, source_of
from .digits import Digits
from .loading import LoadTimmImage
from .pipelines import timm_test_pipeline, timm_train_pipeline
from .transforms import CenterPad, TimmTestTransform, TimmTrainTransform

__all__ = [
    'CenterPad', 'Digits', 'LoadTimmImage', 'NetworkTransform',
    'TimmTestTransform', 'TimmTrainTransform', 'bind_pipeline', 'source_of',
    'timm_test_pipeline', 'timm_train_pipeline'
]
