"""What a feature map goes through on its way to the logits.

Parts are known by the functions that they run: a subclass that runs another
is another part.
"""

from collections.abc import Iterator
from typing import Any

from mmengine.model import is_model_wrapper
from mmpretrain.models import ImageClassifier
from mmpretrain.models.heads import (
    ArcFaceClsHead,
    LinearClsHead,
    MultiLabelLinearClsHead,
)
from mmpretrain.models.heads.margin_head import NormProduct
from mmpretrain.models.necks import (
    ClsBatchNormNeck,
    GeneralizedMeanPooling,
    GlobalAveragePooling,
    LinearNeck,
)
from torch import nn

from ..models import BNNeck, GAPNeck, LinearHead

#: What parts are made of, in the order of their forward.
_NECKS: dict[Any, tuple[str, ...]] = {
    BNNeck.forward: ('bn', ),
    GlobalAveragePooling.forward: ('gap', ),
    ClsBatchNormNeck.forward: ('bn', ),
    LinearNeck.forward: ('gap', 'fc', 'norm', 'act'),
}
_HEADS: dict[Any, tuple[str, ...]] = {
    (LinearHead.forward, LinearHead.pre_logits): ('dropout', 'fc'),
    (LinearClsHead.forward, LinearClsHead.pre_logits): ('fc', ),
    (MultiLabelLinearClsHead.forward,
     MultiLabelLinearClsHead.pre_logits): ('fc', ),
    (ArcFaceClsHead.forward, ArcFaceClsHead.pre_logits): ('norm_product', ),
}
NORMS = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)
_NOTHING = (nn.Identity.forward, nn.Dropout.forward)

#: A layer with its name in the model.
Named = tuple[str, nn.Module]

#: What makes a factor, and how many there are.
FACTORS = {NormProduct.forward: 'an image',
           GeneralizedMeanPooling.forward: 'an image and channel'}


def classifier_of(model: nn.Module) -> nn.Module:
    """What is in a wrapper; refused if it is not backbone, neck and head."""
    while is_model_wrapper(model):
        model = model.module
    extract = getattr(type(model), 'extract_feat', None)
    if (extract is not ImageClassifier.extract_feat
            or getattr(model, 'head', None) is None):
        raise ValueError(
            f'{type(model).__name__} is no ImageClassifier of a backbone, a '
            'neck and a head: a class activation map is of these.')
    return model


def layers_of(model: nn.Module) -> Iterator[Named]:
    """What a feature map goes through, layer by layer."""
    neck, head = getattr(model, 'neck', None), model.head
    if neck is not None:
        yield from _inside('neck', neck)
    kind = type(head).forward, getattr(type(head), 'pre_logits', None)
    if kind not in _HEADS:
        raise _not_affine('head', head)
    for name in _HEADS[kind]:
        yield f'head.{name}', getattr(head, name)


def _inside(name: str, part: nn.Module) -> Iterator[Named]:
    forward = type(part).forward
    if forward is nn.Sequential.forward:
        for inner, child in part.named_children():
            yield from _inside(f'{name}.{inner}', child)
    elif forward in _NECKS:
        for inner in _NECKS[forward]:
            yield f'{name}.{inner}', getattr(part, inner)
    else:
        yield name, part


def check_order(layers: list[Named]) -> nn.Module | None:
    """Follow a map through the layers, and refuse what is not affine.

    Returns:
        The generalised mean that pools, if one does.
    """
    pooled, gem = False, None
    for i, (name, layer) in enumerate(layers):
        forward = type(layer).forward
        if forward is GAPNeck.forward:
            pooled = True  # which lets vectors pass
        elif forward is nn.AdaptiveAvgPool2d.forward and not pooled and (
                layer.output_size in (1, (1, 1))):
            pooled = True
        elif forward is GeneralizedMeanPooling.forward and not pooled and all(
                type(before).forward in _NOTHING for _, before in layers[:i]):
            pooled, gem = True, layer
        elif forward in NORMS:
            if layer.running_mean is None:
                raise ValueError(
                    f'{name} ({type(layer).__name__} with '
                    'track_running_stats=False) normalises by the other '
                    'images: there is no map of one image alone.')
        elif forward in (nn.Linear.forward, NormProduct.forward):
            if not pooled:
                raise ValueError(
                    f'there is no global average pooling ahead of {name} '
                    f'({type(layer).__name__}): put a GAPNeck first.')
            if forward is NormProduct.forward and (
                    i + 1 < len(layers) or layer.k > 1
                    or layer.bias is not None):
                raise _not_affine(name, layer)
        elif forward not in _NOTHING:
            raise _not_affine(name, layer)
    return gem


def _not_affine(name: str, part: nn.Module) -> ValueError:
    return ValueError(
        f'{name} is {type(part).__name__}, behind which a logit is no mean '
        'over positions: there is no exact class activation map. Poolings, '
        'batch norms and linear layers have one.')
