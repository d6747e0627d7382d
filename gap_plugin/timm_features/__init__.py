"""timm networks as feature extractors: pure torch and timm, no OpenMMLab.

Reading order: :mod:`.weights` (files), :mod:`.create` (the network with its
weights), :mod:`.trace` (what a run of it shows), :mod:`.feature_map` (where
its last map is), :mod:`.depth` (which parameter lies how deep).
"""

from .create import NetworkSpec, create_network
from .depth import freeze, layer_depths
from .feature_map import FeaturePath, prepare, read_features, refuses
from .trace import INPUT_ERRORS

__all__ = [
    'INPUT_ERRORS', 'FeaturePath', 'NetworkSpec', 'create_network', 'freeze',
    'layer_depths', 'prepare', 'read_features', 'refuses'
]
