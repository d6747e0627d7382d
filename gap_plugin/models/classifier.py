"""The classifier whose parts find out what follows from the backbone."""

import copy
import inspect
import logging
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import nn

from ..arguments import check_arguments
from ..timm_network import DataSource
from .head import LinearHead
from .wiring import Wiring

_CLASSIFICATION = SimpleNamespace(
    results=[SimpleNamespace(task='Image Classification')])


@MODELS.register_module()
class TimmFeatureClassifier(ImageClassifier):
    """An ``ImageClassifier`` that fills in what follows from its backbone.

    ``in_channels`` of neck and head, where the config leaves it out; ``mean``,
    ``std`` and ``to_rgb`` of the data preprocessor, from timm's
    ``pretrained_cfg``, and its ``num_classes``, from the head. What the
    config gives is never changed. Works with every backbone of MMPretrain.

    Args:
        backbone: Config of the backbone, or the module itself.
        neck: Config of the neck, or the module; a list is a chain; None for
            no neck.
        head: Config of the head, or the module; None for no head.
        pretrained: File or URL of a checkpoint of the whole model; None for
            none.
        train_cfg: What happens to batches in training, such as
            ``dict(augments=...)`` for Mixup and CutMix; None for nothing.
        data_preprocessor: Config of what batches, moves and normalises the
            images, or the module; None for a ``ClsDataPreprocessor``.
        init_cfg: Config of MMEngine's weight initialisation.

    Raises:
        ValueError: If a width in the config contradicts the backbone, or is
            left out and cannot be found.
    """

    def __init__(self,
                 backbone: dict | nn.Module,
                 neck: dict | list | nn.Module | None = None,
                 head: dict | nn.Module | None = None,
                 pretrained: str | None = None,
                 train_cfg: dict | None = None,
                 data_preprocessor: dict | nn.Module | None = None,
                 init_cfg: dict | list[dict] | None = None) -> None:
        check_arguments(
            type(self).__name__, part=dict(backbone=backbone),
            part_or_none=dict(head=head, data_preprocessor=data_preprocessor),
            parts_or_none=dict(neck=neck),
            path_or_none=dict(pretrained=pretrained),
            settings_or_none=dict(train_cfg=train_cfg),
            configs_or_none=dict(init_cfg=init_cfg))
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        wiring = Wiring(backbone)
        if neck is not None:
            neck = wiring.build_neck(neck)
        if head is not None:
            head = wiring.build_head(head)
        filled = wiring.filled
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            data_preprocessor = dict(data_preprocessor or {})
            found = _fill_preprocessor(data_preprocessor, backbone, head)
            filled.update((f'data_preprocessor.{key}', value)
                          for key, value in found.items())
        if filled:
            lines = ''.join(f'\n    {place} = {value}'
                            for place, value in filled.items())
            print_log(
                f'{type(self).__name__} filled in, from '
                f'{wiring.backbone!r}:{lines}', 'current')
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            pretrained=pretrained,
            train_cfg=train_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg)
        if isinstance(head, LinearHead):
            self.data_preprocessor.register_forward_pre_hook(head.check_batch)

    @property
    def _config(self) -> Any:
        """The config that ``mmpretrain.get_model`` has built this from.

        Inferencers make their pipelines of it: its transforms are bound to
        the network of this model.
        """
        try:
            return self.__dict__['_bound_config']
        except KeyError:
            raise AttributeError('this model is not from get_model') from None

    @_config.setter
    def _config(self, config: Any) -> None:
        config = copy.deepcopy(config)  # MMPretrain's zoo holds its own
        source = getattr(self.backbone, 'data_source', None)
        if isinstance(source, DataSource):
            for split in ('train', 'val', 'test'):
                _bind_config(config.get(f'{split}_dataloader'),
                             asdict(source))
        self.__dict__['_bound_config'] = config

    @property
    def _metainfo(self) -> Any:
        """What ``mmpretrain.inference_model`` finds the inferencer by.

        MMPretrain knows the task of models of its own zoo alone.
        """
        return self.__dict__.get('_zoo_entry') or _CLASSIFICATION

    @_metainfo.setter
    def _metainfo(self, entry: Any) -> None:
        self.__dict__['_zoo_entry'] = entry


def _bind_config(part: Any, network: dict[str, Any]) -> None:
    """Tell all transforms of a config whose images they make."""
    if isinstance(part, (list, tuple)):
        for value in part:
            _bind_config(value, network)
    elif isinstance(part, dict):
        for key, value in list(part.items()):
            if key == 'type' and hasattr(
                    TRANSFORMS.get(value) if isinstance(value, str) else
                    value, 'bind_network'):
                part['network'] = network
            else:
                _bind_config(value, network)


def _fill_preprocessor(cfg: dict[str, Any], backbone: nn.Module,
                       head: nn.Module | None) -> dict[str, Any]:
    """Fill a data preprocessor's config in place.

    Returns:
        What has been filled in.
    """
    kind = cfg.setdefault('type', 'ClsDataPreprocessor')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        return {}  # for the registry to say so
    taken = inspect.signature(cls).parameters
    known: dict[str, Any] = {}
    source = getattr(backbone, 'data_source', None)
    if isinstance(source, DataSource):
        known = source.settings(test=False).normalisation
        for key in ('mean', 'std'):
            given = cfg.get(key)
            if given is not None and not _close(given, known[key]):
                print_log(
                    f'data_preprocessor.{key} is {given} in the '
                    f'config, which is kept; {source.model_name!r} was '
                    f'trained with {known[key]}.', 'current',
                    logging.WARNING)
    classes = getattr(head, 'num_classes', None)
    if isinstance(classes, int):
        known['num_classes'] = classes
    found = {
        key: value for key, value in known.items()
        if key in taken and key not in cfg
    }
    cfg.update(found)
    return found


def _close(given: Any, known: list[float]) -> bool:
    """Whether statistics are the same up to the digits that people write."""
    given, known = torch.as_tensor(given).flatten(), torch.tensor(known)
    return len(given) in (1, len(known)) and torch.allclose(
        given.float().expand_as(known), known, rtol=1e-3, atol=0.01)
