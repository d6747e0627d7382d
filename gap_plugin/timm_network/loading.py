"""Weights on their way into a network, through timm's own loader.

timm adapts a state dict (foreign names, another channel count or image size)
inside the function that builds the network. Its loader is called here with
the weights of a file in place of those of the hub, and what reaches the
network is compared with what the network needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from timm.models import _builder
from torch import nn

from ..messages import shorten
from .fit import Fit, needed, of_other_shape
from .grids import Grids, Size
from .trace import INPUT_ERRORS
from .weights import Nests, Place, usual

_timms = _builder.load_pretrained
_current: ContextVar['Loading | None'] = ContextVar('loading', default=None)


def _load_pretrained(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """As timm's loader, but for the networks that are built here."""
    loading = _current.get()
    if loading is None:
        _timms(model, *args, **kwargs)
    else:
        loading.load(model, **kwargs)


_builder.load_pretrained = _load_pretrained


class Loading:
    """One network's weights: where from, and how they fit.

    Args:
        told: What messages call the source.
        size: Height and width that the network is built for; None for its
            own.
        twin: Builds the network for another size, without weights.
        nests: What a file holds; None where timm reads it.
        source: Entries of timm's ``pretrained_cfg`` that lead to the weights.
        key: Which of several places in the file is meant.
        image_size: The size that the file is for, if it says.
        checked: Whether parts that the network lacks are refused; timm knows
            its own weights.
        filter_only: Whether nothing is loaded, to learn timm's filter.

    Attributes:
        filter_fn: The function by which timm adapts weights.
        fit: How they fit; None before, and where the network has read an
            ``.npz`` by itself.
        place: Where in the file they were; None if there was no choice.
        heads: What the names of its classifier begin with.
        begun: Whether the network was there and its weights were tried.
    """

    def __init__(self, told: str, size: Size | None,
                 twin: Callable[[Size], nn.Module],
                 nests: Nests | None = None,
                 source: dict[str, Any] | None = None, key: str | None = None,
                 image_size: Size | None = None,
                 checked: bool = True, filter_only: bool = False) -> None:
        self.told = told
        self.size = size
        self.twin = twin
        self.nests = nests
        self.source = source or {}
        self.key = key
        self.image_size = image_size
        self.checked = checked
        self.filter_only = filter_only
        self.filter_fn: Callable | None = None
        self.fit: Fit | None = None
        self.place: Place | None = None
        self.notes: list[str] = []
        self.begun = False
        self.heads: tuple[str, ...] = ()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Networks that are built in this block are given these weights."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def load(self, model: nn.Module, pretrained_cfg: dict[str, Any],
             filter_fn: Callable | None = None, strict: bool = True,
             **kwargs: Any) -> None:
        """What timm calls for a network that it has built."""
        self.begun = True
        self.filter_fn = filter_fn
        if self.filter_only:
            return
        cfg = {**pretrained_cfg, **self.source}
        if self.nests is not None:
            cfg.update(state_dict=usual(self.nests)[1], custom_load=False)

        def convert(state_dict: dict, *_: Any) -> dict:
            return self._convert(model, state_dict, filter_fn, cfg)

        classifiers = cfg.get('classifier') or ()
        if isinstance(classifiers, str):
            classifiers = (classifiers, )
        self.heads = tuple(f'{n.split(".")[0]}.' for n in classifiers)

        def see(state_dict: dict, *_: Any) -> None:
            self.fit = Fit.of(model, state_dict, self.heads)
            # what has no place is told in our own words, not by timm
            placed = model.state_dict().keys() - set(self.fit.other_shape)
            for name in state_dict.keys() - placed:
                del state_dict[name]

        handle = model._register_load_state_dict_pre_hook(see)
        try:
            _timms(model, pretrained_cfg=cfg, filter_fn=convert, strict=False,
                   **kwargs)
        finally:
            handle.remove()

    def check(self, name: str, unused: tuple[str, ...], hint: str) -> None:
        """Refuse weights that do not belong to the network.

        Args:
            name: The network's name, for the message.
            unused: What begins like this was taken off the network after it
                was built: a file may have or lack it.
            hint: What may help with weights of other shapes.

        Raises:
            ValueError: With counts and first names.
        """
        if self.fit is None:
            return
        self.fit = fit = self.fit.without(unused)
        if not self.checked:
            fit.idle, fit.foreign = fit.idle + fit.foreign, []
            # timm has weights without the norm ahead of the classifier
            anew = [n for n in fit.missing if n.startswith(self.heads)]
            fit.missing = [n for n in fit.missing if n not in anew]
            if anew:
                self.notes.append(f'{self.told}: not in it, and left as they '
                                  f'were made: {shorten(anew)}')
        if not fit:
            raise ValueError(
                f'{self.told} does not fit {name!r}: {fit}; give the weights '
                'of this network, or the model_name that they belong to.'
                + (hint if fit.other_shape else ''))

    def lines(self) -> list[str]:
        """What was taken, and what was left out, for a log."""
        told = list(self.notes)
        if self.place is not None and self.place.path:
            told.append(f'{self.told}: {self.place}')
        if self.fit is not None and self.fit.idle:
            told.append(f'{self.told}: left out, for this network has no '
                        f'place for them: {shorten(self.fit.idle)}')
        return told

    def _convert(self, model: nn.Module, state_dict: dict,
                 filter_fn: Callable | None, cfg: dict) -> dict:
        """The weights in the network's own names and sizes.

        A format that timm knows, and we do not, is read by timm's filter
        alone.
        """
        wants = needed(model)
        if not self.checked:
            return self._filter(model, state_dict, filter_fn, cfg)
        self.place = place = Place(
            {'': state_dict} if self.nests is None else self.nests, wants,
            self.key)
        found = self._filter(model, place.tensors, filter_fn, cfg)
        if self.key is None and any(name not in found for name in wants):
            other = self._filter(model, state_dict, filter_fn, cfg)
            if (sum(name in other for name in wants)
                    > sum(name in found for name in wants)):
                self.place, found = None, other
        return found

    def _filter(self, model: nn.Module, tensors: dict,
                filter_fn: Callable | None, cfg: dict) -> dict:
        own = tuple(cfg['input_size'][1:])
        source = self.image_size
        if source is None and self.nests is None:  # where timm has it from
            source = getattr(model, 'pretrained_model_args', {}).get(
                'img_size') or own
        ours = self.place is not None and 'timm_model.' in self.place.path
        grids = Grids(model, self.size or own, self.twin, self.told)
        tensors = grids.adapt(tensors, source, ours)
        self.notes = grids.notes
        # a filter takes what it does not find for a sign of other formats
        if ours and not of_other_shape(model, tensors):
            return tensors
        return apply_filter(filter_fn, tensors, model)


def apply_filter(filter_fn: Callable | None, tensors: dict,
                 model: nn.Module) -> dict:
    """Run timm's filter of a state dict, of either form that it has.

    Returns:
        What it gives; weights that it cannot read as they are, to be counted.
    """
    if filter_fn is None:
        return tensors
    try:
        return filter_fn(dict(tensors), model)
    except (*INPUT_ERRORS, AttributeError, KeyError):
        pass
    try:
        return filter_fn(dict(tensors))
    except (*INPUT_ERRORS, AttributeError, KeyError):
        return tensors
