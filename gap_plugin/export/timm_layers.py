"""What a timm network has behind its map: heads, and what is in their way."""

from dataclasses import replace

import torch
from timm.layers import SelectAdaptivePool2d
from torch import nn

from ..timm_network import NetworkSpec, create_bare

#: What a network of the wrong settings may raise, built or run.
MISFITS = (ArithmeticError, AssertionError, AttributeError, IndexError,
           KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)

#: What of a head changes nothing, or is the mean.
_PASSING = (nn.Identity, nn.Dropout, nn.Flatten, nn.AdaptiveAvgPool2d)


def owner_of(name: str) -> str:
    """The module that a parameter is of."""
    return name.rpartition('.')[0]


def heads_of(spec: NetworkSpec) -> list[str]:
    """The layers of a network that another number of classes changes."""
    shapes, others = ({name: value.shape for name, value in create_bare(
        replace(spec, num_classes=spec.num_classes + more)
    ).state_dict().items()} for more in (0, 1))
    return list(dict.fromkeys(owner_of(name) for name in shapes
                              if shapes[name] != others.get(name)))


def no_place(weights: dict[str, torch.Tensor], network: nn.Module,
             heads: list[str]) -> list[str]:
    """Names of weights that a network does not have."""
    known = network.state_dict()
    return [name for name, value in weights.items()
            if owner_of(name) not in heads and (
                name not in known or known[name].shape != value.shape)]


@torch.no_grad()
def between(network: nn.Module, heads: list[str],
            images: torch.Tensor) -> list[str]:
    """What timm's ``forward_head`` runs, but for means and classifiers."""
    called: list[str] = []
    for name, layer in network.named_modules():
        layer.register_forward_pre_hook(
            lambda *_, name=name: called.append(name))
    try:
        features = network.forward_features(images)
        called.clear()
        network.forward_head(features)
    except MISFITS:
        called.clear()
    found: list[str] = []
    for name in called:
        parts = name.split('.')
        tops = ['.'.join(parts[:end + 1]) for end in range(len(parts))]
        # the largest part that has no classifier in it
        top = next((top for top in tops if not any(
            f'{head}.'.startswith(f'{top}.') for head in heads)), None)
        if top is None or top in found:
            continue
        part = network.get_submodule(top)
        if isinstance(part, _PASSING) or (
                isinstance(part, SelectAdaptivePool2d)
                and 'avg' == getattr(part, 'pool_type', 'avg').removeprefix(
                    'fast')):
            continue
        found.append(top)
    return found
