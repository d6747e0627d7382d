"""What neck, head and preprocessor need to know of the backbone.

Widths come from what the backbone publishes, or from running it on the meta
device; behind every neck the run goes on, so that a chain of any parts, ours
or MMPretrain's, is followed by what it does and not by its name.
"""

import copy
import inspect
import math
from typing import Any

import torch
from mmengine.model import Sequential
from mmpretrain.registry import MODELS
from torch import nn

from ..timm_network import INPUT_ERRORS, run_for_shapes

#: What parts call the width of their input.
_WIDTH_NAMES = ('in_channels', 'input_features')

#: Errors of parts that cannot be run on such input, or not alone.
_RUN_ERRORS = (*INPUT_ERRORS, AttributeError, ImportError, KeyError)

Features = torch.Tensor | tuple[torch.Tensor, ...] | None


class Wiring:
    """Fills the configs of the parts behind one backbone.

    Args:
        backbone: The backbone, built.

    Attributes:
        features: Meta tensors like what the next part is given; None where
            that cannot be known.
        filled: What has been filled in: place in the config -> value.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = getattr(backbone, 'model_name',
                                type(backbone).__name__)
        self.features: Features = _backbone_features(backbone)
        self.filled: dict[str, Any] = {}

    def build_neck(self, cfg: Any) -> nn.Module | None:
        """Build a neck, or a list of them, with the widths filled in.

        Raises:
            ValueError: If a width in the config contradicts the backbone, or
                is left out and cannot be found.
        """
        if isinstance(cfg, nn.Module):
            self._pass(cfg)
            return cfg
        if not isinstance(cfg, (list, tuple)):
            return self._build_part(cfg, 'neck')
        return Sequential(*(self._build_part(part, f'neck.{i}')
                            for i, part in enumerate(cfg)))

    def build_head(self, cfg: Any, place: str = 'head') -> nn.Module:
        """Build a head; those of a ``MultiTaskHead`` too.

        Args:
            cfg: Config of the head, or the head.
            place: Where it stands in the model's config.

        Raises:
            ValueError: If a width in the config contradicts the backbone, or
                is left out and cannot be found.
        """
        if isinstance(cfg, nn.Module):
            return cfg
        if not isinstance(cfg.get('task_heads'), dict):
            return self._build_part(cfg, place)
        cfg = dict(cfg, task_heads=dict(cfg['task_heads']))
        common = {k: v for k, v in cfg.items()
                  if k not in ('type', 'task_heads', 'init_cfg')}
        features = self.features
        for task, head in cfg['task_heads'].items():
            self.features = features
            if not isinstance(head, nn.Module):
                head = self.build_head({**common, **head},
                                       f'{place}.task_heads.{task}')
            cfg['task_heads'][task] = head
        return MODELS.build(cfg)

    def _build_part(self, cfg: Any, place: str) -> nn.Module:
        if isinstance(cfg, nn.Module):
            self._pass(cfg)
            return cfg
        cfg = copy.deepcopy(cfg)
        name = _width_name(cfg)
        if name is None:
            part = MODELS.build(cfg)
            self._pass(part)
            return part
        if cfg.get(name) is not None:
            part = MODELS.build(cfg)
            self._check(part, name, cfg[name], place)
            return part
        if self.features is None:
            raise ValueError(
                f'{place}.{name} is left out and the width of what '
                f'{self.backbone!r} gives cannot be found: set {name}.')
        error: Exception | None = None
        for width in _widths(self.features):
            try:
                part = MODELS.build({**cfg, name: width})
            except (AssertionError, AttributeError, TypeError) as refused:
                error = error or refused
                continue
            self.filled[f'{place}.{name}'] = width
            self._pass(part)
            return part
        raise error

    def _check(self, part: nn.Module, name: str, given: Any,
               place: str) -> None:
        """Refuse a width of the config that the backbone contradicts."""
        before = self.features
        self._pass(part)
        if before is None or not isinstance(given, int):
            return
        last = before[-1] if isinstance(before, tuple) else before
        if last.ndim in (2, 4) and last.shape[1] != given and (
                self.features is None):
            raise ValueError(
                f'{place}.{name} is {given}, but {self.backbone!r} gives '
                f'{last.shape[1]} channels there: leave {name} out, or set '
                'it to that.')

    def _pass(self, part: nn.Module) -> None:
        """Go on to what a part gives."""
        if self.features is None:
            return
        try:
            features = run_for_shapes(part, self.features)
        except _RUN_ERRORS:
            features = None
        self.features = _as_features(features)


def _widths(features: torch.Tensor | tuple) -> list[int | list[int]]:
    """What a part may want: the width of the last, or those of all."""
    if torch.is_tensor(features):
        features = (features, )
    widths = [x.shape[-1 if x.ndim == 3 else 1] for x in features]
    return [widths[-1], widths]


def _as_features(output: Any) -> Features:
    """Tensors, or None for what is no features."""
    if isinstance(output, list):
        output = tuple(output)
    ok = torch.is_tensor(output) or isinstance(output, tuple) and output and (
        all(torch.is_tensor(y) for y in output))
    return output if ok else None


def _width_name(cfg: dict) -> str | None:
    """What a registered part calls the width of its input, if it has one."""
    kind = cfg.get('type')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if not inspect.isclass(cls):
        return None
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters
        for name in _WIDTH_NAMES:
            if name in parameters:
                return name
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return None
    return None


def _backbone_features(backbone: nn.Module) -> Features:
    """Meta tensors like what a backbone gives for two images."""
    channels = getattr(backbone, 'out_channels', None)
    strides = getattr(backbone, 'out_strides', None)
    size = getattr(backbone, 'image_size', None)
    if isinstance(channels, tuple) and isinstance(strides, tuple) and size:
        if not strides:
            return tuple(torch.empty(2, c, device='meta') for c in channels)
        return tuple(
            torch.empty(2, c, *(math.ceil(s / stride) for s in size),
                        device='meta')
            for c, stride in zip(channels, strides, strict=True))
    own = getattr(backbone, 'img_size', None)
    sizes = [own] if own else []
    for size in (*sizes, 224, 32):
        height, width = (size, size) if isinstance(size, int) else size
        for channels in (3, 1):
            image = torch.empty(2, channels, height, width, device='meta')
            try:
                features = _as_features(run_for_shapes(backbone, image))
            except _RUN_ERRORS:
                continue
            if features is not None:
                return features
    return None
