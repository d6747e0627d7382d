"""The parts of a page: what is found, as names, numbers and pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..messages import first_line
from ..probing import interval
from ..visualization import Explainer, Explanation, Location
from .copies import Pair
from .pictures import Album, Picture, with_map
from .predictions import BINS, Calibration, Predictions
from .splits import Split
from .suspects import NEIGHBOURS, Suspects

#: Cards of a part, and names of a list.
CARDS, PAIRS, NEAR, NAMED = 24, 12, 24, 100
#: Classes of a confusion matrix; images of a cell, right and wrong.
MATRIX, RIGHT, WRONG = 20, 6, 24
#: Bytes of the pictures of a part: 4 MB in all, with 1 MB left for text.
ROOM = dict(mistakes=1_200_000, suspects=500_000, copies=800_000,
            confusion=1_500_000)


class Names:
    """Names as the page shows them: without the folder of all images.

    Args:
        splits: Whose names these are.
        classes: Of the model.
    """

    def __init__(self, splits: Sequence[Split],
                 classes: Sequence[str]) -> None:
        self.classes = [str(c) for c in classes]
        told = [split.told(row) for split in splits
                for row in range(len(split))]
        first, last = min(told), max(told)
        same = next((i for i, (a, b) in enumerate(zip(
            first, last, strict=False)) if a != b), 0)
        cut = max(first.rfind(sign, 0, same) for sign in '/\\') + 1
        self.root = first[:cut]

    def image(self, split: Split, row: int) -> str:
        """The name of an image."""
        return split.told(row).removeprefix(self.root)


def accuracy(found: Predictions) -> dict[str, Any]:
    """The figures at the top of the page, in percent."""
    share = 100 * float(found.right.mean())
    counts = found.confusion.sum(1)
    there = counts > 0
    return dict(
        share=share, wrong=int((~found.right).sum()),
        top5=100 * found.top(5) if found.classes > 5 else None,
        per_class=100 * float((found.confusion.diagonal()[there]
                               / counts[there]).mean()),
        **interval('top1', share, len(found)))


def class_rows(found: Predictions, names: Names,
               train: Split | None) -> list[dict[str, Any]]:
    """A row for each class, the worst first, those without images last."""
    sizes = (None if train is None else
             np.bincount(train.labels, minlength=found.classes))
    rows = []
    for label, name in enumerate(names.classes):
        others = found.confusion[label].copy()
        count, right = int(others.sum()), int(others[label])
        others[label] = 0
        row = dict(name=name, count=count,
                   train=None if sizes is None else int(sizes[label]))
        if count:
            share, most = 100 * right / count, int(others.argmax())
            row.update(share=share, taken_count=int(others[most]),
                       taken=names.classes[most] if others[most] else '',
                       **interval('top1', share, count))
        rows.append(row)
    return sorted(rows, key=lambda r: r.get('share', 101.))


def mistakes(found: Predictions, split: Split, names: Names,
             model: nn.Module) -> dict[str, Any]:
    """The worst mistakes, with their maps where there are exact ones."""
    rows = found.mistakes[:CARDS]
    album = Album(ROOM['mistakes'], 200)
    was, reason, explained = model.training, '', []
    model.eval()
    try:
        explainer = Explainer(model, split.pipeline, up_to_factor=True)
        explained = [explainer(split.info(row)) for row in rows]
    except (OSError, ValueError) as error:
        reason = first_line(error)
    finally:
        model.train(was)
    scale = max((float(each.maps.abs().max()) for each in explained),
                default=0.) or 1.
    cards, cropped = [], False
    for i, row in enumerate(rows):
        predicted, label = int(found.predicted[row]), int(found.labels[row])
        card = dict(
            name=names.image(split, row), predicted=names.classes[predicted],
            label=names.classes[label], own=float(found.own[row]),
            confidence=float(found.confidence[row]))
        if explained:
            each = explained[i]
            maps = dict(zip(each.classes, each.maps, strict=True))
            card.update(
                picture=album.add(each.image),
                chosen_map=_drawn(album, each, maps.get(
                    predicted, each.predicted), scale),
                label_map=_drawn(album, each, maps[label], scale))
            cropped |= _is_cropped(each)
        else:
            card['picture'] = album.add(split.rgb(row))
        cards.append(card)
    notes = dict.fromkeys(each.note for each in explained if each.note)
    return dict(cards=cards, maps=bool(explained), reason=reason,
                note='; '.join(notes), cropped=cropped, scale=f'{scale:.3g}',
                left_out=album.left_out, legend=_legend())


def _drawn(album: Album, each: Explanation, values: torch.Tensor,
           scale: float) -> Picture | None:
    """A map on its image."""
    return album.add(with_map(each.image, values, each.location, scale,
                              album.side))


def _is_cropped(each: Explanation) -> bool:
    """Whether a part of an image has no map."""
    (left, top, right, bottom), (height, width) = (
        each.location.box, each.image.shape[:2])
    return max(left, top, width - right, height - bottom) > 1


def _legend() -> Picture | None:
    ramp = torch.linspace(-1, 1, 64)[None]
    white = np.full((4, 64, 3), 255, np.uint8)
    return Album(10_000, 256).add(with_map(
        white, ramp, Location.whole(white), 1., 128))


def suspects(found: Suspects, splits: Sequence[Split], names: Names,
             file: str, trained: bool) -> dict[str, Any]:
    """The first ones of a ranking of all images."""
    album = Album(ROOM['suspects'], 144)
    cards = []
    for place in found.order[:CARDS]:
        split, row = _place(splits, int(place))
        cards.append(dict(
            name=names.image(split, row), picture=album.add(split.rgb(row)),
            label=names.classes[split.labels[row]],
            suggested=names.classes[found.suggested[place]],
            score=float(found.scores[place])))
    return dict(reason='', cards=cards, file=file, trained=trained,
                left_out=album.left_out, neighbours=NEIGHBOURS,
                count=len(found.order))


def suspect_rows(found: Suspects, splits: Sequence[Split],
                 names: Names) -> list[tuple]:
    """All of a ranking: image, label, suggestion, score."""
    rows = []
    for place in found.order:
        split, row = _place(splits, int(place))
        rows.append((split.told(row), names.classes[split.labels[row]],
                     names.classes[found.suggested[place]],
                     found.scores[place]))
    return rows


def _place(splits: Sequence[Split], row: int) -> tuple[Split, int]:
    """The split and the row there of a row of all splits."""
    for split in splits:
        if row < len(split):
            return split, row
        row -= len(split)
    raise IndexError(row)


def copies(same: list[Pair], near: list[Pair], split: Split, train: Split,
           names: Names, found: Predictions) -> dict[str, Any]:
    """Images in two splits, and those that are near."""
    album = Album(ROOM['copies'], 144)

    def card(pair: Pair, with_pictures: bool = True) -> dict[str, Any]:
        told = dict(name=names.image(split, pair.row),
                    other=names.image(train, pair.other), why=pair.why)
        if with_pictures:
            told.update(
                picture=album.add(split.rgb(pair.row)),
                other_picture=album.add(train.rgb(pair.other)),
                label=names.classes[split.labels[pair.row]],
                other_label=names.classes[train.labels[pair.other]],
                cosine=pair.cosine)
        return told

    others = same[PAIRS:]
    alone = np.ones(len(split), bool)
    alone[[pair.row for pair in same]] = False
    return dict(
        reason='', count=len(same), same=[card(p) for p in same[:PAIRS]],
        others=[card(p, False) for p in others[:NAMED]],
        unnamed=max(len(others) - NAMED, 0),
        near=[card(p) for p in near[:NEAR]],
        without=100 * float(found.right[alone].mean()) if alone.any()
        else None,
        relabelled=sum(split.labels[p.row] != train.labels[p.other]
                       for p in same),
        left_out=album.left_out)


def confusion(found: Predictions, split: Split,
              names: Names) -> dict[str, Any]:
    """The matrix, and the images of its cells."""
    matrix = found.confusion
    wrong = matrix - np.diag(matrix.diagonal())
    chosen = np.arange(found.classes)
    most = []
    if found.classes > MATRIX:
        worst = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind='stable')
        chosen = np.sort(worst[:MATRIX])
        order = np.argsort(-wrong, axis=None, kind='stable')[:MATRIX]
        most = [(int(a), int(b)) for a, b in zip(
            *np.unravel_index(order, wrong.shape), strict=True)
            if wrong[a, b]]
    highest = max(int(wrong[np.ix_(chosen, chosen)].max()), 1)

    def cell(label: int, called: int) -> dict[str, Any]:
        count = int(matrix[label, called])
        if label == called:  # of those of the class
            shade = f'r{5 * count // max(int(matrix[label].sum()), 1)}'
        else:
            shade = f'e{-(-5 * count // highest)}'
        return dict(count=count, id=f'cell-{label}-{called}',
                    name=names.classes[label],
                    called=names.classes[called], shade=shade)

    pairs = {(int(a), int(b)): None for a in chosen for b in chosen
             if matrix[a, b]}
    pairs.update(dict.fromkeys(most))
    album, groups = Album(ROOM['confusion'], 96), []
    # mistakes get the room first
    for label, called in sorted(pairs, key=lambda pair: pair[0] == pair[1]):
        right = label == called
        rows = np.flatnonzero((found.labels == label)
                              & (found.predicted == called))
        sure = found.confidence[rows]
        rows = rows[np.argsort(sure if right else -sure, kind='stable')]
        groups.append(dict(
            cell(label, called), right=right, cards=[dict(
                name=names.image(split, row),
                picture=album.add(split.rgb(row)),
                confidence=float(found.confidence[row]))
                for row in rows[:RIGHT if right else WRONG]]))
    return dict(
        cut=len(chosen) < found.classes,
        classes=[names.classes[c] for c in chosen],
        rows=[dict(name=names.classes[a], cells=[cell(a, b) for b in chosen])
              for a in chosen],
        most=[cell(a, b) for a, b in most], groups=groups,
        left_out=album.left_out)


def calibration(found: Calibration, figure: str) -> dict[str, Any]:
    """The figures of a reliability diagram, in words and numbers."""
    points = 100 * found.gap
    told = ('Confidence and accuracy are equal on average.'
            if abs(points) < .05 else
            f'On average the model is {abs(points):.1f} points '
            f'{"more" if points > 0 else "less"} sure than it is right.')
    return dict(
        error=100 * found.error, told=told, bins=BINS, figure=figure,
        rows=[dict(low=float(low), high=float(high), count=int(count),
                   confidence=float(sure), accuracy=float(right))
              for low, high, count, sure, right in zip(
                  found.edges[:-1], found.edges[1:], found.counts,
                  found.confidence, found.accuracy, strict=True)])
