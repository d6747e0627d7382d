"""The registered parts, in the order in which an image passes them."""

from .backbone import TimmFeatureBackbone
from .classifier import TimmFeatureClassifier
from .head import LinearHead
from .necks import BNNeck, GAPNeck

__all__ = [
    'BNNeck', 'GAPNeck', 'LinearHead', 'TimmFeatureBackbone',
    'TimmFeatureClassifier'
]
