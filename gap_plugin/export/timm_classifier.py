"""The whole timm network that gives what backbone, neck and head give.

timm's networks pool and classify in ways of their own. Which one it is, and
whether it is ours, is not read off names: networks are built by timm with the
settings that decide it, given our weights, and run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..messages import shorten
from ..models import TimmFeatureBackbone
from ..timm_network import (
    NetworkSpec,
    create_bare,
    create_network,
    without_weights,
)
from .timm_layers import MISFITS, between, heads_of, no_place, owner_of

#: Largest difference of logits, as a share of the largest one.
TOLERANCE = 1e-5

#: Units in the last place of what logits are added up from, that both
#: networks may round off.
_UNITS = 2

#: What may have to be set so that a classifier gets the mean over the
#: positions, with no norm that our map has not had.
_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    dict(global_pool='avg'),
    dict(global_pool='avg', fc_norm=False),
    dict(final_norm=False),
    dict(use_fc_norm=False, use_post_transformer_norm=False),
)


@dataclass
class WholeNetwork:
    """A timm network with a classifier.

    Attributes:
        network: On the CPU, in eval mode, with the backbone's weights.
        spec: What it was built from.
        options: What was set for it, beside the backbone's ``timm_kwargs``.
        heads: Names of the layers that get the classifier's weights.
        others: Names of those that get zeros.
        share: Of the outputs of ``heads`` in the logits.
    """

    network: nn.Module
    spec: NetworkSpec
    options: dict[str, Any]
    heads: tuple[str, ...]
    others: tuple[str, ...]
    share: float = 1.

    @torch.no_grad()
    def classify(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set the classifier.

        Args:
            weight: ``(K, C)``, float64.
            bias: ``(K, )``, float64.
        """
        for name in (*self.heads, *self.others):
            layer = self.network.get_submodule(name)
            if name in self.heads:
                layer.weight.copy_((weight / self.share).view_as(layer.weight))
                layer.bias.copy_(bias / self.share)
            else:
                layer.weight.zero_()
                layer.bias.zero_()

    @property
    def how(self) -> str:
        """What was set for it, in words; empty for nothing."""
        told = [f'{key}={value!r}' for key, value in self.options.items()]
        if self.others:
            told.append(f'{", ".join(self.heads)} alone')
        elif len(self.heads) > 1:
            told.append(f'{" and ".join(self.heads)} equal')
        return ', '.join(told)


def whole_network(backbone: TimmFeatureBackbone, num_classes: int,
                  images: torch.Tensor) -> WholeNetwork:
    """Find the network whose logits are affine in our pooled features.

    It has to give a random affine map of the features of some images, with
    random numbers where our weights leave anything open: then it is right
    for every classifier.

    Args:
        backbone: On the CPU, in eval mode.
        num_classes: Number K of classes.
        images: ``(N, in_channels, H, W)``, float32, as the network takes
            them.

    Raises:
        ValueError: If there is none; with the layers that are in the way.
    """
    found = _search(backbone, num_classes, images)
    if found is None:
        raise ValueError(_refusal(backbone, num_classes, images))
    return found


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest absolute value.

    It is infinite where the shapes differ, and may be NaN.
    """
    if found.shape != expected.shape:
        return float('inf')
    off = float((found - expected).abs().max())
    return off / float(expected.abs().max()) if off else off


def rounding(features: torch.Tensor, weight: torch.Tensor,
             bias: torch.Tensor) -> float:
    """By how much float32 leaves logits open.

    A norm behind features that are nearly constant, such as those of a frozen
    backbone, makes small logits of large summands: then it is not theirs that
    rounding goes by, in no network.

    Args:
        features: ``(N, C, h, w)``, or ``(N, C)``.
        weight: ``(K, C)``, float64, of their mean.
        bias: ``(K, )``, float64.
    """
    if features.ndim == 4:
        features = features.mean((2, 3))
    summed = features.double().abs() @ weight.abs().T + bias.abs()
    return _UNITS * torch.finfo(torch.float32).eps * float(summed.max())


@torch.no_grad()
def _search(backbone: TimmFeatureBackbone, num_classes: int,
            images: torch.Tensor) -> WholeNetwork | None:
    features = backbone(images)[-1]
    if features.ndim == 4:
        features = features.mean((2, 3))
    chance = torch.Generator().manual_seed(0)
    width = features.shape[1]
    weight = torch.randn(num_classes, width, generator=chance) / width**.5
    bias = torch.randn(num_classes, generator=chance)
    expected = features @ weight.T + bias
    for found, open_ in _candidates(backbone, num_classes, width):
        kept = [value.clone() for value in open_]
        for value in open_:
            value.normal_(generator=chance)
        try:
            found.classify(torch.zeros(weight.shape).double(),
                           torch.ones(num_classes).double())
            found.share = float(found.network(images[:1])[0, 0])
            found.classify(weight.double(), bias.double())
            off = difference(found.network(images), expected)
        except MISFITS:
            continue
        for value, before in zip(open_, kept, strict=True):
            value.copy_(before)
        if off <= TOLERANCE:
            return found
    return None


def _candidates(
        backbone: TimmFeatureBackbone, num_classes: int, width: int
) -> Iterator[tuple[WholeNetwork, list[torch.Tensor]]]:
    """Networks that our weights fit, with each way of using their heads.

    Yields:
        The network, and its parameters that are neither ours nor a head's.
    """
    weights = backbone.timm_model.state_dict()
    heads = heads_of(_spec(backbone, num_classes, {}))
    seen = set()
    for options in _OPTIONS:
        spec = _spec(backbone, num_classes, options)
        try:
            bare = create_bare(spec)
            same = repr(bare), getattr(bare, 'global_pool', None)
            if same in seen or no_place(weights, bare, heads):
                continue
            seen.add(same)
            network = create_network(spec)[0].eval()
        except MISFITS:
            continue
        network.load_state_dict(
            {name: value for name, value in weights.items()
             if owner_of(name) not in heads}, strict=False)
        neutral = _make_neutral(network, weights)
        open_ = [value for name, value in network.named_parameters()
                 if name not in weights
                 and owner_of(name) not in (*heads, *neutral)]
        wide = [name for name in heads if network.get_submodule(
            name).weight[0].numel() == width]
        chosen = [(name, ) for name in reversed(wide)]
        if len(wide) == len(heads) > 1:
            chosen.insert(0, tuple(heads))
        for each in chosen:
            yield WholeNetwork(
                network, spec, options, each,
                tuple(name for name in heads if name not in each)), open_


def _spec(backbone: TimmFeatureBackbone, num_classes: int,
          options: dict[str, Any]) -> NetworkSpec:
    spec = without_weights(backbone.stored.spec)
    return replace(spec, num_classes=num_classes,
                   timm_kwargs={**spec.timm_kwargs, **options})


def _make_neutral(network: nn.Module,
                  weights: dict[str, torch.Tensor]) -> list[str]:
    """Let batch norms that are none of ours hand on what they are given."""
    found = []
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and (
                f'{name}.running_var' not in weights):
            layer.running_var.fill_(1 - layer.eps)
            found.append(name)
    return found


def _refusal(backbone: TimmFeatureBackbone, num_classes: int,
             images: torch.Tensor) -> str:
    """Why there is no such network, and what to do."""
    name = backbone.model_name
    spec = _spec(backbone, num_classes, {})
    heads = heads_of(spec)
    lost = no_place(backbone.timm_model.state_dict(), create_bare(spec),
                    heads)
    if lost:
        return (
            f'{name!r} as timm builds it has no place for {shorten(lost)}: '
            'the network has been changed (deploy=True and fuse_conv_bn '
            'merge layers); take the checkpoint from before.')
    network = create_network(spec)[0].eval()
    found = between(network, heads, images)
    acts = [getattr(each, 'final_act', None)
            for each in (network, backbone.timm_model)]
    if type(acts[0]) is not type(acts[1]):  # final_conv stands ahead of it
        found = ['final_act', *found]
    told = (f'timm has {", ".join(found)} between the map and the '
            'classifier' if found else
            'timm classifies something else than the mean of the map')
    return f'{name!r} cannot go back to timm with this head: {told}' + (
        _advice(backbone, spec, images))


def _advice(backbone: TimmFeatureBackbone, spec: NetworkSpec,
            images: torch.Tensor) -> str:
    """Which models of the network can: it is tried."""
    chance = torch.Generator().manual_seed(0)
    for out_feature in ('forward_features', 'pre_logits'):
        if (out_feature == 'forward_features' and backbone.out_strides
                and not hasattr(backbone.timm_model, 'final_conv')):
            continue  # that is its map
        try:
            other = TimmFeatureBackbone(
                spec.model_name, in_channels=spec.in_channels,
                img_size=spec.img_size, out_feature=out_feature,
                timm_kwargs=backbone.stored.spec.timm_kwargs).eval()
            for value in other.parameters():
                if value.ndim == 1:  # norms that do something, as trained
                    value.data.normal_(generator=chance)
            found = _search(other, spec.num_classes, images)
        except MISFITS:
            continue
        if found is not None:
            return (f'; one that is trained with out_feature={out_feature!r} '
                    'of the backbone can.')
    return '; use the checkpoint with this package.'
