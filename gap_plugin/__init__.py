"""timm networks as MMPretrain backbones.

Importing this package registers ``TimmFeatureBackbone``, ``GAPNeck``,
``BNNeck``, ``LinearHead`` and ``Digits`` in MMPretrain's registries and lets
torch read the checkpoints that MMEngine writes, without the code that a file
may carry. It does nothing else.
"""

from .compat import allow_host_checkpoints, check_host

check_host()
allow_host_checkpoints()

from .datasets import Digits
from .models import BNNeck, GAPNeck, LinearHead, TimmFeatureBackbone
from .version import __version__

__all__ = [
    'BNNeck', 'Digits', 'GAPNeck', 'LinearHead', 'TimmFeatureBackbone',
    '__version__'
]
