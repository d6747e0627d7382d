"""timm networks as MMPretrain backbones.

Importing this package registers its backbone, necks, head, classifier,
dataset, transforms and optimizer wrapper in MMPretrain's registries and lets
torch read the checkpoints that MMEngine writes, without the code that a file
may carry. It does nothing else.
"""

from .compat import allow_classes, allow_host_checkpoints, check_host

check_host()
allow_host_checkpoints()

from .datasets import Digits
from .models import (
    BNNeck,
    GAPNeck,
    LinearHead,
    TimmFeatureBackbone,
    TimmFeatureClassifier,
)
from .optim import Bfloat16OptimWrapper
from .preprocessing import (
    TimmTestTransform,
    TimmTrainTransform,
    timm_test_pipeline,
    timm_train_pipeline,
)
from .version import __version__

__all__ = [
    'BNNeck', 'Bfloat16OptimWrapper', 'Digits', 'GAPNeck', 'LinearHead',
    'TimmFeatureBackbone', 'TimmFeatureClassifier', 'TimmTestTransform',
    'TimmTrainTransform', '__version__', 'allow_classes',
    'timm_test_pipeline', 'timm_train_pipeline'
]
