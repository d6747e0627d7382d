"""timm networks as MMPretrain backbones.

Importing this package registers its backbone, necks, head, classifier,
dataset, transforms, optimizer wrapper and checkpoint hook in MMPretrain's
registries and lets torch read the checkpoints that MMEngine writes, without
the code that a file may carry. It does nothing else.
"""

from .compat import allow_classes, allow_host_checkpoints, check_host

check_host()
allow_host_checkpoints()

from .datasets import Digits
from .engine import AtomicCheckpointHook, Bfloat16OptimWrapper
from .models import (
    BNNeck,
    GAPNeck,
    LinearHead,
    TimmFeatureBackbone,
    TimmFeatureClassifier,
)
from .preprocessing import (
    TimmTestTransform,
    TimmTrainTransform,
    timm_test_pipeline,
    timm_train_pipeline,
)
from .version import __version__

__all__ = [
    'AtomicCheckpointHook', 'BNNeck', 'Bfloat16OptimWrapper', 'Digits',
    'GAPNeck', 'LinearHead', 'TimmFeatureBackbone', 'TimmFeatureClassifier',
    'TimmTestTransform', 'TimmTrainTransform', '__version__',
    'allow_classes', 'timm_test_pipeline', 'timm_train_pipeline'
]
