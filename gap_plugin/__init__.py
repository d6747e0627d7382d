"""timm networks as MMPretrain backbones.

Importing this package registers its backbone, necks, head, classifier,
dataset, transforms, optimizer wrapper and hooks in MMPretrain's registries
and lets torch read the checkpoints that MMEngine writes, without the code
that a file may carry. It does nothing else.
"""

import warnings

from .host import check_host

check_host()

with warnings.catch_warnings():
    # parts of MMCV that need its compiled half, which nothing here does
    warnings.filterwarnings('ignore', 'Fail to import')
    from .datasets import (
        Digits,
        LoadTimmImage,
        TimmTestTransform,
        TimmTrainTransform,
        timm_test_pipeline,
        timm_train_pipeline,
    )
    from .engine import (
        AtomicCheckpointHook,
        Bfloat16OptimWrapper,
        BindPipelineHook,
        allow_classes,
        allow_host_checkpoints,
        check_host_loads,
    )
    from .models import (
        BNNeck,
        GAPNeck,
        LinearHead,
        TimmFeatureBackbone,
        TimmFeatureClassifier,
    )
    from .visualization import (
        ClassActivationHook,
        class_activation_map,
    )
from .version import __version__

allow_host_checkpoints()
check_host_loads()

__all__ = [
    'AtomicCheckpointHook', 'BNNeck', 'Bfloat16OptimWrapper',
    'BindPipelineHook', 'ClassActivationHook', 'Digits', 'GAPNeck',
    'LinearHead', 'LoadTimmImage', 'TimmFeatureBackbone',
    'TimmFeatureClassifier', 'TimmTestTransform', 'TimmTrainTransform',
    '__version__', 'allow_classes', 'class_activation_map',
    'timm_test_pipeline', 'timm_train_pipeline'
]
