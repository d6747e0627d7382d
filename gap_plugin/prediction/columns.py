"""What of an image's scores stands in its row."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..messages import shorten
from .tables import Part

LABELS = ('name', 'index')
OUTPUTS = ('prob', 'logit')


@dataclass
class Columns:
    """What a row is to show.

    Attributes:
        topk: How many labels. None: one; with a threshold, as many as the
            image with most of them has; for a model of several labels an
            image, what its head says.
        threshold: Probability from which on a label is shown, 0 to 1; what
            is left of a row is empty.
        all_classes: Whether a column for each class with its score follows.
        label_type: ``'name'`` or ``'index'``.
        output_type: Scores are ``'prob'``, probabilities, or ``'logit'``.

    Raises:
        ValueError: If one of them is out of its range.
    """

    topk: int | None = None
    threshold: float | None = None
    all_classes: bool = False
    label_type: str = 'name'
    output_type: str = 'prob'

    def __post_init__(self) -> None:
        if self.topk is not None and self.topk < 1:
            raise ValueError(f'topk={self.topk} must be 1 or more.')
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f'threshold={self.threshold} must be from 0 to '
                             '1.')
        for name, known in (('label_type', LABELS), ('output_type', OUTPUTS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name} must be one of {known}, got '
                                 f'{getattr(self, name)!r}.')

    def of(self, number: int, classes: Sequence[str] | None,
           usual: tuple[int | None, float | None]) -> 'Layout':
        """The layout for a model.

        Args:
            number: Of its classes.
            classes: Their names, None if they are not known.
            usual: ``topk`` and ``threshold`` where neither is given.

        Raises:
            ValueError: If two columns would have one name.
        """
        topk, threshold = ((self.topk, self.threshold) if
                           (self.topk, self.threshold) != (None, None)
                           else usual)
        if topk is not None and topk > number:
            warnings.warn(f'topk={topk}: there are {number} classes.',
                          stacklevel=3)
        if classes is not None and len(classes) != number:
            warnings.warn(
                f'{len(classes)} names of classes for {number} scores: labels'
                ' are numbers.', stacklevel=3)
            classes = None
        elif classes is None and self.label_type == 'name':
            warnings.warn('neither the checkpoint nor the config names the '
                          'classes: labels are numbers.', stacklevel=3)
        if self.label_type == 'index':
            classes = None
        return Layout(
            number, classes, topk, threshold, self.output_type == 'logit',
            self._names(number, classes) if self.all_classes else ())

    @staticmethod
    def _names(number: int, classes: Sequence[str] | None) -> tuple[str, ...]:
        """Names of the columns of classes."""
        names = [*map(str, range(number) if classes is None else classes)]
        taken = [*names, 'image', *(
            f'{name}{_end(rank)}' for rank in range(number)
            for name in ('label', 'score'))]
        twice = sorted({name for name in names if taken.count(name) > 1})
        if twice:
            raise ValueError(
                f'all_classes=True: {shorten(twice)} would be the name of '
                "two columns: use label_type='index'.")
        return tuple(names)


def _end(rank: int) -> str:
    return f'_{rank + 1}' if rank else ''


@dataclass
class Layout:
    """The rows of a table, as they are stored and as they are shown.

    Attributes:
        number: Of classes.
        classes: Their names; None for numbers.
        topk: Labels of a row, None for as many as there are.
        threshold: Probability that they have at least.
        logits: Whether scores are logits.
        columns: Names of the columns of classes.
    """

    number: int
    classes: Sequence[str] | None
    topk: int | None
    threshold: float | None
    logits: bool
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        count = self.topk or (1 if self.threshold is None else self.number)
        #: Labels that are stored, and that are shown.
        self.stored = self.shown = min(count, self.number)

    @property
    def kind(self) -> np.dtype:
        """What a stored row is; a label of -1 is none."""
        return np.dtype([('label', '<i4', (self.stored, )),
                         ('score', '<f4', (self.stored, )),
                         ('all', '<f4', (len(self.columns), ))])

    def fill(self, rows: np.ndarray, logits: torch.Tensor | None,
             scores: torch.Tensor) -> np.ndarray:
        """Rows of a batch, best label first, of equal ones the first class.

        Args:
            rows: To write to.
            logits: ``(N, K)``; None where they are not asked for.
            scores: Probabilities.
        """
        labels = torch.sort(scores, dim=1, descending=True, stable=True
                            ).indices[:, :self.stored].cpu().numpy()
        shown = (logits if self.logits else scores).cpu().numpy()
        rows['score'] = np.take_along_axis(shown, labels, 1)
        if self.threshold is not None:
            chosen = np.take_along_axis(scores.cpu().numpy(), labels, 1)
            labels[chosen < np.float32(self.threshold)] = -1
        rows['label'] = labels
        rows['all'] = shown[:, :len(self.columns)]
        return rows

    def show(self, most: int) -> dict[str, type]:
        """Columns of the table, with the kind of their values.

        Args:
            most: Labels of the image that has most of them.
        """
        if self.topk is None:
            self.shown = max(1, most)
        found: dict[str, type] = dict(image=str)
        for rank in range(self.shown):
            found[f'label{_end(rank)}'] = int if self.classes is None else str
            found[f'score{_end(rank)}'] = np.float32
        return found | dict.fromkeys(self.columns, np.float32)

    def part(self, names: Sequence[str], rows: np.ndarray) -> Part:
        """Some rows of the table, column by column."""
        found: Part = [names]
        for rank in range(self.shown):
            labels, scores = rows['label'][:, rank], rows['score'][:, rank]
            none = labels < 0
            found += [np.ma.array(labels, mask=none) if self.classes is None
                      else [None if label < 0 else self.classes[label]
                            for label in labels],
                      np.ma.array(scores, mask=none)]
        return found + [*rows['all'].T]
