"""Exact class activation maps: what each position adds to a logit.

A mean over positions, a batch norm in eval mode and a linear layer are all
affine. With ``W`` and ``b`` of all that stands behind the feature map ``f``,

    map[k, i, j] = W[k] . f[:, i, j] + b[k]

has the logit of class k as its mean over the positions: not an approximation,
and without a gradient. It is the map of `Learning Deep Features for
Discriminative Localization <https://arxiv.org/abs/1512.04150>`_, with the
norms folded in. GradCAM of such a network is its positive part, without scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.heads.margin_head import NormProduct
from torch import nn

from .chain import FACTORS, NORMS, check_order, classifier_of, layers_of


@dataclass(frozen=True)
class Folded:
    """All that stands behind a feature map, as one affine map a position.

    The feature map is what ``model.backbone`` gives, the last one of a tuple.

    Attributes:
        weight: ``W``, ``(K, C)``, float64.
        bias: ``b``, ``(K, )``, float64.
        note: Up to which factors the maps are exact; empty where they are.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    note: str = ''
    _gem: nn.Module | None = None
    _neck: nn.Module | None = None
    _scaled: bool = False

    @torch.no_grad()
    def maps(self, features: Any,
             classes: Sequence[int] | torch.Tensor | None = None
             ) -> torch.Tensor:
        """Maps of feature maps.

        Args:
            features: What the backbone gives for N images: ``(N, C, h, w)``,
                or a tuple, whose last entry is taken.
            classes: Which rows of ``weight``; None for all. ``(N, K')``:
                each image its own.

        Returns:
            ``(N, K', h, w)``, in logits.

        Raises:
            ValueError: If the features are no maps of this width, or there
                is no such class.
        """
        found = _last(features)
        if found.ndim != 4 or found.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f'the features have the shape {tuple(found.shape)}, and a '
                'class activation map is of a feature map (N, '
                f'{self.weight.shape[1]}, h, w): take a backbone that gives '
                "one (out_feature='final_conv' or 'forward_features' of "
                'TimmFeatureBackbone).')
        weight, bias = self.weight, self.bias
        if classes is not None:
            classes = check_classes(classes, len(weight), len(found))
            classes = classes.to(weight.device)
            weight, bias = weight[classes], bias[classes]
        with torch.autocast(found.device.type, enabled=False):
            # float32 at least: half of a logit is lost in bfloat16
            x = found if found.dtype == torch.float64 else found.float()
            weight, bias = weight.to(x), bias.to(x)
            if self._gem is not None:
                x = _of_gem(self._gem, x)
            rows = 'kc' if weight.ndim == 2 else 'nkc'
            maps = torch.einsum(f'{rows},ncp->nkp', weight, x.flatten(2))
            maps = maps + bias[..., None]
            if self._scaled:
                vector = x if self._neck is None else self._neck(features)
                norm = _last(vector).to(x).norm(dim=1)
                maps = maps / norm.clamp_min(1e-12)[:, None, None]
        return maps.unflatten(2, found.shape[2:])


def class_activation_map(
        model: nn.Module,
        inputs: torch.Tensor,
        classes: Sequence[int] | torch.Tensor | None = None,
        up_to_factor: bool = False) -> torch.Tensor:
    """What each position adds to the logits of a classifier.

    The mean over the positions is the logit, and the mean over any of them
    is what neck and head give of the mean of their features. For many
    batches, :func:`fold` once and take :meth:`Folded.maps` of
    ``model.backbone(inputs)``.

    Args:
        model: An ``ImageClassifier``, ours or stock, in eval mode.
        inputs: Images ``(N, C, H, W)`` as they leave the data preprocessor.
        classes: Numbers of classes; None for all. A tensor ``(N, K')`` gives
            each image its own.
        up_to_factor: As of :func:`fold`.

    Returns:
        ``(N, K', h, w)``, in logits, positive and negative.

    Raises:
        ValueError: If the model is in training mode, has no such map or no
            such class.
    """
    folded = fold(model, up_to_factor)
    with torch.no_grad():
        features = classifier_of(model).backbone(inputs)
    return folded.maps(features, classes)


@torch.no_grad()
def fold(model: nn.Module, up_to_factor: bool = False) -> Folded:
    """Neck and head of a classifier as one affine map, in float64.

    ``logits map = weight @ feature map + bias``, at each position.

    Known parts are our ``GAPNeck``, ``BNNeck`` and ``LinearHead``, and
    MMPretrain's ``GlobalAveragePooling``, ``ClsBatchNormNeck``,
    ``LinearNeck``, ``LinearClsHead`` and ``MultiLabelLinearClsHead``.

    Args:
        model: An ``ImageClassifier``, ours or stock, in eval mode.
        up_to_factor: Whether parts are taken as well that make a map exact
            up to a positive factor: ``ArcFaceClsHead`` (one an image), and
            ``GeneralizedMeanPooling`` (one an image and channel). The mean
            of such a map is still the logit; that over a part of it is not
            what neck and head give of that part.

    Raises:
        ValueError: If the model is in training mode, or what stands behind
            its feature map is not affine; with the name of the part.
    """
    model = classifier_of(model)
    for name, part in model.named_modules():
        if part.training:
            raise ValueError(
                f'{name or type(model).__name__} is in training mode, in '
                'which a logit depends on the other images: call '
                'model.eval() first.')
    if getattr(model.backbone, 'out_strides', None) == ():
        raise ValueError(
            f'{type(model.backbone).__name__} with '
            "out_feature='pre_logits' gives vectors, which have no "
            "positions: take 'final_conv' or 'forward_features'.")
    layers = list(layers_of(model))
    gem = check_order(layers)
    factors = [f'{FACTORS[type(part).forward]} ({type(part).__name__})'
               for _, part in layers if type(part).forward in FACTORS]
    if factors and not up_to_factor:
        raise ValueError(
            f'the map is exact up to a factor {" and ".join(factors)}: give '
            'up_to_factor=True to take it so.')
    *before, (_, last) = layers
    weight, bias, scaled = _rows(last)
    device = 'cpu' if weight.device.type == 'mps' else weight.device
    weight = weight.to(device, torch.float64)
    bias = (weight.new_zeros(len(weight)) if bias is None else
            bias.to(weight))
    if scaled:
        weight = model.head.scale * F.normalize(weight)
    for _, layer in reversed(before):
        if isinstance(layer, nn.Linear):
            bias = bias + (0 if layer.bias is None else
                           weight @ layer.bias.to(weight))
            weight = weight @ layer.weight.to(weight)
        elif type(layer).forward in NORMS:
            scale = (layer.running_var.to(weight) + layer.eps).rsqrt()
            if layer.weight is not None:
                scale = scale * layer.weight.to(weight)
            shift = -layer.running_mean.to(weight) * scale
            if layer.bias is not None:
                shift = shift + layer.bias.to(weight)
            bias = bias + weight @ shift
            weight = weight * scale
    note = f'exact up to a factor {" and ".join(factors)}' if factors else ''
    return Folded(weight, bias, note, gem,
                  getattr(model, 'neck', None), scaled)


def _rows(last: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
    """Weight and bias of a classifier, and whether it takes a cosine."""
    return (last.weight, last.bias,
            type(last).forward is NormProduct.forward)


def _of_gem(pooling: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A map whose mean is the generalised mean of another."""
    if pooling.clamp:
        x = x.clamp(min=pooling.eps)
    powers = x.pow(pooling.p.to(x))
    mean = powers.mean((2, 3), keepdim=True)
    factor = mean.pow(1 / pooling.p.to(x)) / mean
    return powers * factor.where(mean != 0, 0)  # of a channel without values


def _last(features: Any) -> torch.Tensor:
    return features[-1] if isinstance(features, (tuple, list)) else features


def check_classes(classes: Any, count: int, images: int) -> torch.Tensor:
    """Numbers of classes as a tensor, each of which there is."""
    found = torch.as_tensor(classes)
    whole = not (found.is_floating_point() or found.is_complex()
                 or found.dtype == torch.bool)
    if found.ndim not in (1, 2) or not found.numel() or not whole or (
            found.ndim == 2 and len(found) != images):
        raise ValueError(f'classes={classes!r} must be numbers of classes: '
                         '[0, 3], or a tensor of as many rows as images.')
    if int(found.min()) < 0 or int(found.max()) >= count:
        raise ValueError(f'classes={found.tolist()} must be from 0 to '
                         f'{count - 1}: the model has {count} classes.')
    return found.long()
