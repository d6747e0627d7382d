"""Weights that MMEngine loads into our networks: all that is needed, or none.

MMEngine loads what fits, warns of the rest, and goes on with what was made by
chance. Its loaders meet in one function (``load_from``, a resumed run, test
checkpoints, ``init_cfg``, ``get_model``, inferencers), which is wrapped here
for models that hold a :class:`TimmFeatureBackbone`. A user's own
``load_state_dict`` stays torch's.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import checkpoint
from torch import nn

from ..messages import shorten
from ..models import TimmFeatureBackbone
from ..timm_network.fit import Fit, needed, of_other_shape
from ..timm_network.weights import (
    IMAGE_SIZE,
    Place,
    nests_of,
    recorded_size,
)

_INNER = 'timm_model.'


def check_host_loads() -> None:
    """Hold MMEngine's loading of state dicts to the rule."""
    if not hasattr(checkpoint.load_state_dict, '__wrapped__'):
        checkpoint.load_state_dict = _checked(checkpoint.load_state_dict)
        checkpoint._load_checkpoint_with_prefix = _load_with_prefix


def _checked(load: Callable) -> Callable:

    @wraps(load)
    def load_state_dict(module: nn.Module, state_dict: dict,
                        strict: bool = False, logger: Any = None) -> None:
        while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
            module = module.module
        ours = {f'{name}.' if name else '': part
                for name, part in module.named_modules()
                if isinstance(part, TimmFeatureBackbone)}
        if not ours:
            return load(module, state_dict, strict, logger)
        state_dict = _placed(module, state_dict)
        for prefix, part in ours.items():
            kept = state_dict._metadata.setdefault(prefix[:-1], {})
            part.stored.before_load(state_dict, prefix, kept)
            kept[IMAGE_SIZE] = part.image_size  # by now
        check = _Check(module, ours, state_dict)
        handle = module.register_load_state_dict_post_hook(check.see)
        try:
            load(module, check.state_dict, strict, logger)
        finally:
            handle.remove()

    return load_state_dict


def _placed(module: nn.Module, state_dict: dict) -> dict:
    """The weights under a model's own names, a copy."""
    nests = nests_of(state_dict)
    if not nests:
        raise ValueError('the checkpoint holds no tensors: give a state '
                         "dict, or a checkpoint with a 'state_dict' entry.")
    inner = _INNER if isinstance(module, TimmFeatureBackbone) else ''
    wants = {name.removeprefix(inner): shape
             for name, shape in needed(module).items()}
    place = Place(nests, wants)
    if place.path == inner or not place.is_named:
        found = OrderedDict(state_dict)
    else:
        print_log(f'checkpoint: {place}', logger='current')
        found = OrderedDict((inner + name, value)
                            for name, value in place.tensors.items())
    metadata = getattr(state_dict, '_metadata', {})
    found._metadata = OrderedDict((k, dict(v)) for k, v in metadata.items())
    if inner and recorded_size(state_dict):
        found._metadata[''] = {IMAGE_SIZE: recorded_size(state_dict)}
    return found


def _load_with_prefix(prefix: str, filename: str,
                      map_location: Any = None) -> OrderedDict:
    """As MMEngine's, with what is saved beside the weights."""
    found = checkpoint._load_checkpoint(filename, map_location=map_location)
    found = found.get('state_dict', found)
    prefix = f'{prefix.rstrip(".")}.'
    part = OrderedDict((name.removeprefix(prefix), value)
                       for name, value in found.items()
                       if name.startswith(prefix))
    if not part:
        raise ValueError(f'{filename!r} has no weights under {prefix!r}, the '
                         f'prefix of init_cfg; it has {shorten(found)}.')
    part._metadata = OrderedDict(
        (f'{name}.'.removeprefix(prefix).rstrip('.'), value)
        for name, value in getattr(found, '_metadata', {}).items()
        if f'{name}.'.startswith(prefix))
    return part


class _Check:
    """Compares what a model needs with what it is given.

    Args:
        module: The model.
        ours: Prefix -> backbone.
        state_dict: Under the model's names.
    """

    def __init__(self, module: nn.Module, ours: dict[str, nn.Module],
                 state_dict: dict) -> None:
        self.module = module
        self.ours = ours
        self.state_dict = state_dict
        idle = {prefix + name for prefix, part in ours.items()
                for name in part.stored.idle}
        self.needed = needed(module).keys() - idle
        self.other_shape = of_other_shape(module, state_dict)
        #: backbones that have their weights from elsewhere, and get none
        self.served = tuple(
            prefix for prefix, part in ours.items() if part.has_weights
            and not any(name.startswith(prefix) for name in state_dict))

    def see(self, module: nn.Module, incompatible: Any) -> None:
        """Refuse what does not fit, when MMEngine has tried.

        Raises:
            ValueError: With counts and first names.
        """
        missing = [name for name in incompatible.missing_keys
                   if name in self.needed
                   and not name.startswith(self.served)]
        if not self.needed & self.state_dict.keys() - set(self.other_shape):
            raise ValueError(
                'nothing in the checkpoint fits the model of the config; it '
                f'has {shorten(self.state_dict)}: give the checkpoint of '
                "this model; weights in timm's own names go into "
                'checkpoint_path of the backbone.')
        fit = Fit(missing, self.other_shape)
        for prefix, part in self.ours.items():
            self._left_over(fit, prefix, part, incompatible.unexpected_keys)
        rest = Fit()
        if self._starts_training():
            backbones = tuple(self.ours)
            for names, others in ((fit.missing, rest.missing),
                                  (fit.other_shape, rest.other_shape)):
                others += [n for n in names if not n.startswith(backbones)]
                names[:] = [n for n in names if n.startswith(backbones)]
        if not fit:
            raise ValueError(
                f'the checkpoint does not fit the model of the config '
                f'({fit}): give the checkpoint of this model, or the changes '
                'of the config that it was trained with.')
        if not rest:
            print_log(f'left as they were made, for the checkpoint does not '
                      f'fit: {rest}', logger='current',
                      level=logging.WARNING)

    def _left_over(self, fit: Fit, prefix: str, part: nn.Module,
                   names: list[str]) -> None:
        found = Fit()
        inner = prefix + _INNER
        found.place(part.timm_model, [
            name.removeprefix(inner) for name in names
            if name.startswith(inner)
            and torch.is_tensor(self.state_dict.get(name))
            and self.state_dict[name].is_floating_point()])
        fit.foreign += [inner + name for name in found.foreign]
        fit.idle += [inner + name for name in found.idle]
        if prefix:  # of another backbone than ours
            fit.foreign += [name for name in names if name.startswith(prefix)
                            and not name.startswith(inner)]

    def _starts_training(self) -> bool:
        """Whether what is not loaded has been made to be trained.

        Runners initialise the models that they train, and no others. The copy
        that averages weights is made before, and is not trained itself.
        """
        return (getattr(self.module, 'is_init', False)
                or hasattr(self.module, '_params_init_info')  # right now
                or not any(value.requires_grad
                           for value in self.module.parameters()))
