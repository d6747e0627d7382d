"""Which network a pipeline makes images for."""

import logging
import os
from collections.abc import Hashable, Iterator
from typing import Any
from uuid import uuid4

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from torch import nn

from ..arguments import check_arguments
from ..timm_network import DataSource, data_source, live_source


class NetworkTransform(BaseTransform):
    """A transform that makes what one network takes.

    That network is the one of ``model_name``; else the one that it is bound
    to, by ``network`` or :meth:`bind_network`; else, asked for at every
    image, the only one that lives in this process.

    Args:
        model_name: Any name of timm. Such a transform is never bound.
        in_channels: Channels of the image, with ``model_name``.
        network: Fields of a :class:`DataSource`.
    """

    def __init__(self, model_name: str | None = None, in_channels: int = 3,
                 network: dict[str, Any] | None = None) -> None:
        check_arguments(type(self).__name__,
                        text_or_none=dict(model_name=model_name),
                        count=dict(in_channels=in_channels),
                        settings_or_none=dict(network=network))
        self.model_name = model_name
        self._bound: DataSource | ValueError | None = None
        self._warned = False
        if model_name is not None:
            self._bound = data_source(model_name, in_channels)
        elif network is not None:
            self.bind_network(DataSource(**network))

    def bind_network(self, source: DataSource) -> bool:
        """Make images for this network from now on.

        Returns:
            Whether other images may have been made up to now.
        """
        if self.model_name is not None:
            return False
        before, self._bound = self._bound, source
        return not (isinstance(before, DataSource)
                    and self.matters(before) == self.matters(source))

    def matters(self, source: DataSource) -> Hashable:
        """What of a network's images matters to this transform."""
        return source.images

    def source(self) -> DataSource:
        """Whose images these are, at this moment.

        Raises:
            ValueError: If networks of different images are in this process.
        """
        if isinstance(self._bound, ValueError):  # in a worker process
            raise self._bound
        found = self._bound or live_source(type(self).__name__,
                                           self.matters)
        if found is not None:
            return found
        if not self._warned:
            self._warned = True
            print_log(
                f'{type(self).__name__}: there is no network of timm in this '
                "process, so that timm's defaults are taken: give model_name "
                'if that is not what you want.', 'current', logging.WARNING)
        return _DEFAULTS

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self._bound is None:  # another process lacks the network
            try:
                found = live_source(type(self).__name__, self.matters)
            except ValueError as error:
                found = error
            state['_elsewhere'] = (os.getpid(), _PROCESS), found
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        process, found = state.pop('_elsewhere', (None, None))
        self.__dict__.update(state)
        if process not in (None, (os.getpid(), _PROCESS)):  # not copied
            self._bound = found


_DEFAULTS = DataSource("timm's defaults", {})
#: With its number, this process: numbers alone are used again elsewhere.
_PROCESS = uuid4().hex


def source_of(model: Any) -> DataSource | None:
    """Whose images a model takes: those of its outermost network of timm.

    Of several at one depth it is the one that is called ``backbone``.

    Args:
        model: A model, in a wrapper or not.

    Returns:
        None if it has no network of ours.

    Raises:
        ValueError: If several networks take different images.
    """
    if not isinstance(model, nn.Module):
        model = getattr(model, 'model', nn.Module())  # of DeepSpeed's wrapper
    found = [(name.split('.') if name else [], module.data_source)
             for name, module in model.named_modules()
             if isinstance(getattr(module, 'data_source', None), DataSource)]
    least = min((len(path) for path, _ in found), default=0)
    outer = [(path, source) for path, source in found if len(path) == least]
    chosen = [each for each in outer if each[0][-1:] == ['backbone']] or outer
    if len({source.images for _, source in chosen}) > 1:
        names = ' and '.join(f'{".".join(path)} ({source.model_name!r})'
                             for path, source in chosen)
        raise ValueError(f'{names} take different images: give the '
                         'transforms of the pipelines model_name and '
                         'img_size, or call one network backbone.')
    return chosen[0][1] if chosen else None


def bind_pipeline(root: Any, source: DataSource) -> bool:
    """Bind all transforms that follow a network to this one.

    Args:
        root: A transform, a pipeline, a dataset or a wrapper of datasets, or
            a list of them.
        source: Of the network.

    Returns:
        Whether other images may have been made up to now.
    """
    return any([part.bind_network(source) for part in _parts(root)
                if hasattr(part, 'bind_network')])


def _parts(root: Any) -> Iterator[Any]:
    """Objects that lie in attributes and lists of others, each once.

    Wrappers of datasets and of transforms have many names for what they
    hold. Lists of anything else, such as a million samples, are not read.
    """
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (list, tuple, dict)):
            values = part.values() if isinstance(part, dict) else part
            if _is_part(next(iter(values), None)):
                waiting.extend(values)
        elif _is_part(part) and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting.extend(vars(part).values())


def _is_part(value: Any) -> bool:
    """Whether transforms may lie in it."""
    if isinstance(value, (list, tuple)):
        return bool(value) and _is_part(value[0])
    return (hasattr(value, '__dict__')
            and not isinstance(value, (type, np.ndarray, nn.Module, dict))
            and (callable(value) or hasattr(value, '__getitem__')))
