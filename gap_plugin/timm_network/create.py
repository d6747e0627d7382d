"""Building a timm network with its weights, from arguments that are checked.

Everything goes through ``timm.create_model``, and weights of every source
through timm's own loader, so that its filters, stem adaptation and resampling
of position embeddings apply to local files too.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import timm
import torch
from timm.models import (
    is_model,
    parse_model_name,
    split_model_name_tag,
)

from ..messages import first_line
from ..requirements import TIMM_COMPLETE
from .hub import is_registered, reachable_weights
from .loading import Loading
from .weights import read_weights

#: timm's name of an argument -> ours, which must be used instead
_RESERVED = {
    'model_name': 'model_name',
    'pretrained': 'pretrained',
    'checkpoint_path': 'checkpoint_path',
    'checkpoint_key': 'checkpoint_key',
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
        checkpoint_key: What leads to the weights in a file with several.
        num_classes: Of a classifier; 0 for none.
    """

    model_name: str
    pretrained: bool = False
    checkpoint_path: str | None = None
    in_channels: int = 3
    img_size: tuple[int, int] | None = None
    timm_kwargs: dict[str, Any] = field(default_factory=dict)
    checkpoint_key: str | None = None
    num_classes: int = 0

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
        if self.checkpoint_key is not None and not (
                isinstance(self.checkpoint_key, str) and self.checkpoint_key
                and self.checkpoint_path):
            raise ValueError(
                f'checkpoint_key={self.checkpoint_key!r} says which of '
                'several weights in a checkpoint_path are meant, such as '
                "'teacher': leave it out, or give both.")
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
                repr(sorted(self.timm_kwargs.items())), self.num_classes)


def create_network(
        spec: NetworkSpec) -> tuple[torch.nn.Module, Loading | None]:
    """Build a timm network, without its classifier unless one is asked for.

    Args:
        spec: What to build.

    Returns:
        The network, and how its weights fit (None when it has been given
        none).

    Raises:
        ValueError: If the name is unknown, an argument is not taken by the
            network, or the weights cannot be read.
        ConnectionError: If the weights hub is needed and does not answer.
        FileNotFoundError: If there is no ``checkpoint_path``.
    """
    check_name(spec.model_name)
    loading = _weights(spec)
    if loading is None:
        return _create(spec, None), None
    with loading.active():
        return _create(spec, loading), loading


def _weights(spec: NetworkSpec) -> Loading | None:
    """What a network is to be given."""
    twin = partial(sized_twin, spec)
    if spec.checkpoint_path:
        told = f'checkpoint_path {spec.checkpoint_path!r}'
        nests, size = read_weights(spec.checkpoint_path)
        # else a hub name's own source comes first
        source = dict(source='')
        if nests is None:
            source.update(file=spec.checkpoint_path, custom_load=True)
        return Loading(told, spec.img_size, twin, nests, source,
                       spec.checkpoint_key, size)
    source = {}
    if spec.pretrained or not is_registered(spec.model_name):
        source = reachable_weights(spec.model_name)
    if not spec.pretrained:
        return None
    return Loading('the file of pretrained=True', spec.img_size,
                   twin, None, source,
                   checked=not is_registered(spec.model_name))


def create_bare(spec: NetworkSpec) -> torch.nn.Module:
    """Build a network without weights, to look at.

    Args:
        spec: What to build; its weights are left out.

    Returns:
        The network, on the meta device where timm can build it there. Older
        timm reads numbers off tensors while it builds most networks.
    """
    bare = without_weights(spec)
    try:
        with torch.device('meta'):
            return create_network(bare)[0]
    except (NotImplementedError, RuntimeError, ValueError):
        return create_network(bare)[0]


def sized_twin(spec: NetworkSpec, size: tuple[int, int]) -> torch.nn.Module:
    """The same network for another image size, to look at."""
    return create_bare(replace(spec, img_size=tuple(size)))


def filter_of(spec: NetworkSpec) -> Callable | None:
    """The function by which timm adapts weights of a network.

    timm knows it where it builds the network with weights, and only there.
    """
    loading = Loading('', spec.img_size, lambda _: None, filter_only=True)
    with loading.active():
        try:
            with torch.device('meta'):
                _create(without_weights(spec), loading)
        except (NotImplementedError, RuntimeError, ValueError):
            _create(without_weights(spec), loading)
    return loading.filter_fn


def without_weights(spec: NetworkSpec) -> NetworkSpec:
    """The same network, as it is made."""
    return replace(spec, pretrained=False, checkpoint_path=None,
                   checkpoint_key=None)


def newer_timm() -> str:
    """What to do where this timm lacks something."""
    return f'pip install "timm>={TIMM_COMPLETE}" (here: {timm.__version__})'


def _create(spec: NetworkSpec, loading: Loading | None) -> torch.nn.Module:
    kwargs = dict(
        spec.timm_kwargs,
        model_name=spec.model_name,
        pretrained=loading is not None,
        num_classes=spec.num_classes,
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
        if loading is not None and loading.begun:
            if loading.told in str(error):
                raise
            raise ValueError(
                f'{loading.told} does not fit {spec.model_name!r}: '
                f'{type(error).__name__}: {first_line(error)[:160]}; give '
                'the weights of this network, or the model_name that they '
                'belong to.') from None
        if not spec.timm_kwargs:
            raise
        raise ValueError(
            f'timm_kwargs {spec.timm_kwargs!r}: {spec.model_name!r} '
            f'cannot be built with it ({first_line(error)[:160]}); '
            'change it.') from None


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
