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

from ..messages import shorten
from ..models import TimmFeatureBackbone
from ..timm_network import (
    NetworkSpec,
    create_bare,
    create_network,
    without_weights,
)

#: Largest difference of logits, as a share of the largest one.
TOLERANCE = 1e-5

#: What may have to be set for a mean over the positions, with no norm behind
#: it that our map has not had.
_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    dict(global_pool='avg'),
    dict(global_pool='avg', fc_norm=False),
    dict(final_norm=False),
    dict(use_fc_norm=False, use_post_transformer_norm=False),
)

#: What candidates of the wrong settings may raise.
_MISFITS = (ArithmeticError, AssertionError, AttributeError, IndexError,
            KeyError, RuntimeError, TypeError, ValueError)

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass
class WholeNetwork:
    """A timm network with a classifier.

    Attributes:
        network: On the CPU, in eval mode, with the backbone's weights.
        spec: What it was built from.
        options: What was set for it, beside the backbone's ``timm_kwargs``.
        heads: Names of the layers that get the classifier's weights.
        others: Names of those that get zeros.
        share: Of their outputs in the logits.
    """

    network: nn.Module
    spec: NetworkSpec
    options: dict[str, Any]
    heads: tuple[str, ...]
    others: tuple[str, ...] = ()
    share: float = 1.

    @torch.no_grad()
    def classify(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set the classifier.

        Args:
            weight: ``(K, C)``, float64.
            bias: ``(K, )``, float64.
        """
        for name in self.heads:
            layer = self.network.get_submodule(name)
            layer.weight.copy_((weight / self.share).view_as(layer.weight))
            layer.bias.copy_(bias / self.share)
        for name in self.others:
            layer = self.network.get_submodule(name)
            layer.weight.zero_()
            layer.bias.zero_()

    @property
    def how(self) -> str:
        """In words, what was set for it."""
        told = [f'{key}={value!r}' for key, value in self.options.items()]
        if self.others:
            told.append(f'{", ".join(self.others)} zero')
        elif len(self.heads) > 1:
            told.append(f'{", ".join(self.heads)} equal')
        return '; '.join(told)


@torch.no_grad()
def whole_network(backbone: TimmFeatureBackbone, num_classes: int,
                  images: torch.Tensor) -> WholeNetwork:
    """Find the network whose logits are affine in our pooled features.

    A random affine map of the features of some images is asked for, and what
    our weights leave open is filled with random numbers: what gives it is
    right for every classifier.

    Args:
        backbone: On the CPU, in eval mode.
        num_classes: Number K of classes.
        images: ``(N, in_channels, H, W)``, float32, as the network takes
            them.

    Raises:
        ValueError: If there is none; with the layers that are in the way.
    """
    features = backbone(images)[-1]
    if features.ndim == 4:
        features = features.mean((2, 3))
    chance = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=chance) for shape in (
        (num_classes, features.shape[1]), (num_classes, )))
    weight = weight / features.shape[1]**.5
    expected = features @ weight.T + bias
    for found in _candidates(backbone, num_classes, features.shape[1]):
        try:
            with _Filled(found.network, backbone, chance):
                found.share = _share(found, images)
                found.classify(weight.double(), bias.double())
                off = difference(found.network(images), expected)
        except _MISFITS:
            continue
        if off <= TOLERANCE:
            return found
    raise ValueError(_refusal(backbone, num_classes, images))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest absolute value.

    NaN where there is one, which is not below any limit.
    """
    if found.shape != expected.shape:
        return float('nan')
    off = float((found - expected).abs().max())
    return off / float(expected.abs().max()) if off else off


def _candidates(backbone: TimmFeatureBackbone, num_classes: int,
                width: int) -> Iterator[WholeNetwork]:
    """Networks that our weights fit, with each way of using their heads."""
    weights = backbone.timm_model.state_dict()
    for options in _OPTIONS:
        spec = _spec(backbone, num_classes, options)
        try:
            shapes, heads = _look(spec)
            if not heads or not fits(weights, shapes, heads):
                continue
            network = create_network(spec)[0].eval()
        except _MISFITS:
            continue
        network.load_state_dict(
            {name: value for name, value in weights.items()
             if name.rpartition('.')[0] not in heads}, strict=False)
        _neutral(network, weights)
        wide = [name for name in heads if network.get_submodule(
            name).weight[0].numel() == width]
        chosen = [(name, ) for name in reversed(wide)]
        if len(heads) > 1 and len(wide) == len(heads):
            chosen.insert(0, tuple(heads))
        for each in chosen:
            yield WholeNetwork(network, spec, options, each, tuple(
                name for name in heads if name not in each))


def _spec(backbone: TimmFeatureBackbone, num_classes: int,
          options: dict[str, Any]) -> NetworkSpec:
    spec = without_weights(backbone.stored.spec)
    return replace(spec, num_classes=num_classes,
                   timm_kwargs={**spec.timm_kwargs, **options})


def _look(spec: NetworkSpec) -> tuple[dict[str, torch.Size], list[str]]:
    """Shapes of all that a network holds; which layers are its heads.

    These are the layers that another number of classes changes.
    """
    shapes, others = ({name: value.shape for name, value in create_bare(
        replace(spec, num_classes=spec.num_classes + more)
    ).state_dict().items()} for more in (0, 1))
    return shapes, list(dict.fromkeys(
        name.rpartition('.')[0] for name, shape in shapes.items()
        if others.get(name) != shape))


def misfits(weights: dict[str, torch.Tensor], shapes: dict[str, torch.Size],
            heads: list[str]) -> list[str]:
    """Names of weights of ours that a network has no place for."""
    return [name for name, value in weights.items()
            if name.rpartition('.')[0] not in heads
            and shapes.get(name) != value.shape]


def _neutral(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Let batch norms that are none of ours hand on what they are given."""
    for name, layer in network.named_modules():
        if isinstance(layer, _BATCH_NORMS) and layer.affine and (
                f'{name}.running_var' not in weights):
            layer.running_var.fill_(1 - layer.eps)


def _share(found: WholeNetwork, images: torch.Tensor) -> float:
    """What a head's output counts for in the logits."""
    zero, one = (torch.full((width, ), float(value), dtype=torch.float64)
                 for value, width in ((0, 1), (1, found.spec.num_classes)))
    found.share = 1.
    for name in found.heads:
        zero = torch.zeros_like(found.network.get_submodule(name).weight)
    found.classify(zero.double(), one)
    return float(found.network(images)[0, 0])
