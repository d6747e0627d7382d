"""Whether offered weights are those that a network needs: the one rule."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ..messages import shorten


def needed(model: nn.Module) -> dict[str, torch.Size]:
    """The weights that a module cannot do without, name -> shape.

    Parameters, and what norms have measured. Counters and tables of indices
    are made by the module itself.
    """
    return {name: value.shape for name, value in model.state_dict().items()
            if torch.is_tensor(value)
            and (value.is_floating_point() or value.is_complex())}


def of_other_shape(model: nn.Module, offered: Mapping) -> list[str]:
    """Names of offered tensors that have another shape in a module."""
    return [name for name, shape in needed(model).items()
            if getattr(offered.get(name), 'shape', shape) != shape]


@dataclass
class Fit:
    """What a network needs, and what of it a file has.

    Attributes:
        missing: Needed, and not there.
        other_shape: There, in another shape.
        foreign: Parts that the network lacks where it has others beside
            them: further blocks, of another network.
        idle: What nobody needs: a classifier, a decoder.
    """

    missing: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, offered: Mapping,
           heads: tuple[str, ...] = ()) -> 'Fit':
        """Compare a network with a state dict under its own names.

        Args:
            model: The network.
            offered: Name -> tensor.
            heads: What the names of its classifier begin with.
        """
        wants = needed(model)
        known = {*model.state_dict(), *(n for n, _ in model.named_buffers())}
        fit = cls([name for name in wants if name not in offered],
                  of_other_shape(model, offered))
        fit.place(model, [
            name for name, value in offered.items() if name not in known
            and torch.is_tensor(value) and value.is_floating_point()],
            heads)
        return fit

    def place(self, model: nn.Module, left_over: Iterable[str],
              heads: tuple[str, ...] = ()) -> None:
        """Tell idle weights from those of another network."""
        modules = {name for name, _ in model.named_modules()}
        for name in left_over:
            inside = name.partition('.')[0] in modules and '.' in name
            part = inside and not name.startswith(heads)
            (self.foreign if part else self.idle).append(name)

    def without(self, unused: tuple[str, ...]) -> 'Fit':
        """The same, of a network that lacks what begins like this."""
        return Fit(*([name for name in names if not name.startswith(unused)]
                     for names in (self.missing, self.other_shape,
                                   self.foreign, self.idle)))

    def __bool__(self) -> bool:
        """Whether the network gets all that it needs, and is this one."""
        return not (self.missing or self.other_shape or self.foreign)

    def __str__(self) -> str:
        """Counts and first names."""
        return '; '.join(
            f'{len(names)} weights {what}: {shorten(names)}'
            for names, what in ((self.missing, 'missing'),
                                (self.other_shape, 'of another shape'),
                                (self.foreign, 'of parts that it lacks'))
            if names)
