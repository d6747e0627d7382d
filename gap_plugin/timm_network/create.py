"""Building a timm network with its weights, from arguments that are checked.

Everything goes through ``timm.create_model``: local files are handed to timm
as the source of its pretrained weights, so that its own filters, stem
adaptation and position embedding resampling apply to them too.
"""

import difflib
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from packaging.version import Version
from timm.models import (
    get_pretrained_cfg,
    is_model,
    parse_model_name,
    split_model_name_tag,
)

from ..messages import first_line
from ..requirements import TIMM_COMPLETE
from .hub import is_registered, reachable_weights
from .weights import KeyReport, key_report, read_checkpoint

#: timm's name of an argument -> ours, which must be used instead
_RESERVED = {
    'model_name': 'model_name',
    'pretrained': 'pretrained',
    'checkpoint_path': 'checkpoint_path',
    'in_chans': 'in_channels',
    'in_channels': 'in_channels',
    'out_feature': 'out_feature',
    'out_indices': 'out_indices',
    'features_only': 'out_indices',
    'num_classes': "the head's num_classes",
    'frozen_stages': 'frozen_stages',
    'norm_eval': 'norm_eval',
    'with_cp': 'with_cp',
    'init_cfg': 'init_cfg',
    'img_size': 'img_size',
}


@dataclass(frozen=True)
class NetworkSpec:
    """Which timm network to build, and with which weights.

    Args:
        model_name: Any name that ``timm.create_model`` takes.
        pretrained: Whether to load timm's own weights.
        checkpoint_path: A local file of timm-format weights.
        in_channels: Channels of the input image.
        img_size: Height and width that it is built for; None for its own.
        timm_kwargs: Further arguments of ``timm.create_model``.
    """

    model_name: str
    pretrained: bool = False
    checkpoint_path: str | None = None
    in_channels: int = 3
    img_size: tuple[int, int] | None = None
    timm_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model_name, str) or not self.model_name:
            raise TypeError(
                f'model_name must be the name of a timm network, got '
                f'{self.model_name!r}; timm.list_models() lists them.')
        if not isinstance(self.pretrained, bool):
            raise TypeError(
                f'pretrained must be True or False, got {self.pretrained!r}; '
                'the path of a local file goes into checkpoint_path.')
        if self.pretrained and self.checkpoint_path:
            raise ValueError(
                f'pretrained=True and checkpoint_path='
                f'{self.checkpoint_path!r} exclude each other: keep the one '
                'whose weights you want.')
        if (not isinstance(self.in_channels, int)
                or isinstance(self.in_channels, bool)
                or self.in_channels < 1):
            raise ValueError(f'in_channels must be a positive integer, got '
                             f'{self.in_channels!r}.')
        if not isinstance(self.timm_kwargs, dict) or not all(
                isinstance(key, str) for key in self.timm_kwargs):
            raise TypeError(f'timm_kwargs must be a dict of arguments by '
                            f'name, got {self.timm_kwargs!r}.')
        for key in self.timm_kwargs:
            if key in _RESERVED:
                raise ValueError(
                    f'timm_kwargs has {key!r}, which is not passed on: use '
                    f'{_RESERVED[key]} instead.')

    @property
    def key(self) -> tuple:
        """Equal for specs whose networks differ in weights at most."""
        return (self.model_name, self.in_channels, self.img_size,
                repr(sorted(self.timm_kwargs.items())))


def create_network(
        spec: NetworkSpec) -> tuple[torch.nn.Module, KeyReport | None]:
    """Build a timm network without its classifier.

    Args:
        spec: What to build.

    Returns:
        The network, and which keys of ``checkpoint_path`` did not match
        (None when there is no such file).

    Raises:
        ValueError: If the name is unknown, an argument is not taken by the
            network, or the weights do not fit.
        ConnectionError: If the weights hub is needed and does not answer.
        FileNotFoundError: If there is no ``checkpoint_path``.
    """
    check_name(spec.model_name)
    overlay: dict[str, Any] = {}
    if spec.checkpoint_path:
        tensors = read_checkpoint(spec.checkpoint_path)
        overlay = dict(source='')  # else a hub name's own source comes first
        if tensors is None:
            overlay.update(file=spec.checkpoint_path, custom_load=True)
        else:
            overlay.update(state_dict=tensors, custom_load=False)
    elif spec.pretrained or not is_registered(spec.model_name):
        overlay = reachable_weights(spec.model_name)
    with key_report() as report:
        model = _create(spec, overlay)
    if overlay:  # publish what timm says of the network, not of the file
        plain = {}
        if is_registered(spec.model_name):
            # None for a name that timm has renamed
            registered = get_pretrained_cfg(spec.model_name)
            plain = registered.to_dict() if registered else {}
        for key in overlay:
            model.pretrained_cfg.pop(key, None)
            if key in plain:
                model.pretrained_cfg[key] = plain[key]
    return model, report if spec.checkpoint_path else None


def create_bare(spec: NetworkSpec) -> torch.nn.Module:
    """Build a network without weights, to look at.

    Args:
        spec: What to build; its weights are left out.

    Returns:
        The network, on the meta device where timm can build it there. Older
        timm reads numbers off tensors while it builds most networks.
    """
    bare = replace(spec, pretrained=False, checkpoint_path=None)
    try:
        with torch.device('meta'):
            return create_network(bare)[0]
    except (NotImplementedError, RuntimeError, ValueError):
        return create_network(bare)[0]


def newer_timm() -> str:
    """What to do where this timm lacks something."""
    return f'pip install "timm>={TIMM_COMPLETE}" (here: {timm.__version__})'


def _create(spec: NetworkSpec, overlay: dict[str, Any]) -> torch.nn.Module:
    kwargs = dict(spec.timm_kwargs)
    if overlay:
        kwargs['pretrained_cfg_overlay'] = {
            **kwargs.get('pretrained_cfg_overlay', {}),
            **overlay
        }
    from_file = bool(spec.checkpoint_path)
    kwargs.update(
        model_name=spec.model_name,
        pretrained=spec.pretrained or from_file,
        num_classes=0,
        in_chans=spec.in_channels)
    try:
        if spec.img_size is None:
            return timm.create_model(**kwargs)
        return _create_for_size(kwargs, spec.img_size)
    except TypeError as error:
        if not spec.timm_kwargs:
            raise
        raise ValueError(
            f'timm_kwargs {spec.timm_kwargs!r}: {spec.model_name!r} does not '
            f'take them ({first_line(error)[:160]}); change or take out '
            'what is wrong.') from None
    except (AssertionError, AttributeError, KeyError, RuntimeError,
            ValueError) as error:
        sizes = str(error).count('size mismatch for')
        older = ''
        if sizes and Version(timm.__version__) < Version(TIMM_COMPLETE):
            older = (' If they are right, this timm cannot read them without '
                     f'a classifier or for another img_size: {newer_timm()}.')
            if not from_file:
                raise ValueError(
                    f'pretrained=True: {sizes} tensors of the weights of '
                    f'{spec.model_name!r} have another shape.{older}'
                ) from None
        if not from_file:
            if not spec.timm_kwargs:
                raise
            raise ValueError(
                f'timm_kwargs {spec.timm_kwargs!r}: {spec.model_name!r} '
                f'cannot be built with it ({first_line(error)[:160]}); '
                'change it.') from None
        detail = (f'{sizes} tensors of another shape' if sizes else
                  f'{type(error).__name__}: {first_line(error)[:160]}')
        raise ValueError(
            f'checkpoint_path {spec.checkpoint_path!r} does not fit '
            f'{spec.model_name!r}: {detail}; give the weights of this '
            f'network, or the model_name that they belong to.{older}'
        ) from None


def _create_for_size(kwargs: dict[str, Any],
                     size: tuple[int, int]) -> torch.nn.Module:
    """Build a network for an image size, by what it has for that.

    Weights are resampled by timm's own filter in either case.
    """
    try:
        return timm.create_model(**kwargs, img_size=size)
    except TypeError as error:
        if 'img_size' not in str(error):
            if size[0] != size[1]:
                raise
            # in older timm a few networks take one number alone
            return timm.create_model(**kwargs, img_size=size[0])
    model = timm.create_model(**kwargs)
    if hasattr(model, 'set_input_size'):
        model.set_input_size(size)
    return model  # all else are convolutions: they take what comes


def check_name(name: str) -> None:
    """Refuse a name that timm does not know, and suggest the nearest.

    Raises:
        ValueError: If it is unknown.
    """
    try:
        source, _ = parse_model_name(name)
    except ValueError as error:
        raise ValueError(f'model_name {name!r}: {first_line(error)}') from None
    if source is not None:
        return
    base, tag = split_model_name_tag(name)
    if not is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), 3, 0.6)
        if '/' in name:  # said by newer timm itself
            near = [f"'hf-hub:{name}' (a repository)"]
        hint = (f'did you mean {", ".join(near)}?'
                if near else 'timm.list_models() lists them all.')
        raise ValueError(f'model_name {name!r} is no timm network; {hint}')
    if tag:
        tags = [
            split_model_name_tag(n)[1]
            for n in timm.list_models(f'{base}.*', pretrained=True)
        ]
        if tag not in tags:
            raise ValueError(
                f'model_name {name!r}: {base!r} has no weights {tag!r}; '
                f'timm has {", ".join(tags) or "none"}.')
