"""What is trained: neck and head of a classifier."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..features.fixed_part import FixedPart
from ..files import written_whole
from ..models import BNNeck


class _Stored(nn.Module):
    """Stands where the backbone stood: features come as they are."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, x: torch.Tensor) -> Any:
        return (x, ) if self.in_tuple else x

    def get_layer_depth(self, *_: str) -> tuple[int, int]:
        """Of what comes behind a backbone: its rate does not decay."""
        return 0, 1


def check_frozen(model: nn.Module) -> None:
    """Refuse a backbone whose features would change in training.

    Raises:
        ValueError: If it has weights that are trained, or norms that follow
            the batches.
    """
    was = model.training
    model.train()
    trained = sum(p.requires_grad for p in model.backbone.parameters())
    moving = sum('running_var' in m._buffers and m.training
                 for m in model.backbone.modules())
    if not was:
        model.eval()
    if trained or moving:
        raise ValueError(
            f'the backbone is not frozen ({trained} parameters are trained, '
            f'{moving} norms follow the batches), so that its features would '
            "not stay: set frozen_stages='all' of TimmFeatureBackbone, or "
            'probe it as it is with freeze=True.')


def probe_model(model: nn.Module, in_tuple: bool = True) -> nn.Module:
    """The classifier with stored features in place of its fixed part.

    Its parameters keep their names, and are the model's own.

    Raises:
        ValueError: If nothing of it is left to train.
    """
    short = _without(model, FixedPart(model).necks)
    short.backbone = _Stored(in_tuple)
    short.data_preprocessor = nn.Identity()
    short.one_hot = getattr(model.data_preprocessor, 'to_onehot', False)
    if not any(p.requires_grad for p in short.parameters()):
        raise ValueError('neither neck nor head of the config has a '
                         'parameter that is trained: give it a head, such '
                         'as LinearHead.')
    return short


def _without(model: nn.Module, necks: list[str]) -> nn.Module:
    """The same, but for some necks; all parts stay those of the model."""
    found = copy.copy(model)
    found._modules = dict(model._modules)
    if necks == ['neck']:
        found.neck = nn.Identity()
    elif necks:
        found.neck = nn.Sequential(OrderedDict(
            (name, nn.Identity() if f'neck.{name}' in necks else part)
            for name, part in model.neck.named_children()))
    return found


def necks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> each part of the neck that does something."""
    neck = getattr(model, 'neck', None)
    parts = ({f'neck.{name}': part for name, part in neck.named_children()}
             if isinstance(neck, nn.Sequential) else {'neck': neck})
    return {name: part for name, part in parts.items()
            if not isinstance(part, (nn.Identity, type(None)))}


def norm_of(model: nn.Module) -> tuple[str, BNNeck] | None:
    """Name and module of the one ``BNNeck`` that can be left out, if any."""
    found = [(name, part) for name, part in necks_of(model).items()
             if type(part) is BNNeck and type(part.bn) is nn.BatchNorm1d]
    return found[0] if len(found) == 1 else None


def of_setting(short: nn.Module, setting: Mapping) -> nn.Module:
    """What is trained with a setting: without its ``BNNeck`` if it says so.

    That of the model then gives what it is given, so that the model is what
    is trained, whatever it is built from.

    Raises:
        ValueError: If there is none to leave out.
    """
    if setting.get('norm', True):
        return short
    norm = norm_of(short)
    if norm is None:
        raise ValueError('norm=False leaves the BNNeck of the neck out, but '
                         'the neck has none, or several.')
    name, neck = norm
    neck.bn.reset_parameters()  # scale 1, shift 0, mean 0
    neck.bn.running_var.fill_(1 - neck.bn.eps)
    return _without(short, [name])


def save_whole(model: nn.Module, path: str | Path, meta: dict) -> None:
    """Write an ordinary checkpoint of the whole model, or nothing."""
    with written_whole(path) as temporary:
        torch.save(dict(meta=meta, state_dict={
            name: value.cpu() for name, value in model.state_dict().items()
        }), temporary)
