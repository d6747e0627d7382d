"""Images whose label may be wrong: all of them, the likeliest first."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from ..probing.choice import folds
from ..probing.neighbours import unit
from ..progress import bar

#: Of the probe that is trained anew for each fold. Few and small steps: a
#: probe that fits its training images fits their errors.
FOLDS = 5
EPOCHS = 20
RATE, DECAY = 5e-4, .1
#: Images that vote: the nearest ones, without copies of the image. Of many
#: images, evenly drawn ones are looked at, for the time grows as the product.
NEIGHBOURS = 20
VOTERS = 100_000
_BLOCK = 512  # images at a time


@dataclass
class Suspects:
    """A ranking of images by how little speaks for their labels.

    Nothing is claimed of any of them: it is the order to look at them in.

    Attributes:
        order (np.ndarray): ``(N, )``, rows, the likeliest error first.
        scores (np.ndarray): ``(N, )``, of each row, 0 to 1: one minus the
            mean of the share that its label has in a probe that has not seen
            the image, and in the vote of its neighbours.
        suggested (np.ndarray): ``(N, )``, the class other than its label
            that most speaks for.
    """

    order: np.ndarray
    scores: np.ndarray
    suggested: np.ndarray


def rank_labels(features: np.ndarray, labels: np.ndarray,
                groups: np.ndarray | None = None, *, classes: int,
                seed: int = 0,
                device: torch.device | str = 'cpu') -> Suspects:
    """Rank images by how likely their label is wrong.

    By the sum of two shares between 0 and 1: the probability of the label in
    a linear probe that was trained on the other folds (as confident learning
    takes it, https://arxiv.org/abs/1911.00068), and the share of the k
    nearest other images that have the label.

    Args:
        features: ``(N, C)``.
        labels: ``(N, )`` class indices.
        groups: ``(N, )``; rows of one group are copies of each other, which
            share a fold and do not vote for each other. None for no copies.
        classes: Number K of classes, 2 at least.
        seed: Of the folds and of the probe.
        device: Where it is computed.

    Raises:
        ValueError: If there are fewer images than folds, or one class.
    """
    if classes < 2:
        raise ValueError('label errors need 2 classes at least, there is '
                         f'{classes}.')
    if groups is None:
        groups = np.arange(len(labels))
    if len(np.unique(groups)) < FOLDS:
        raise ValueError(f'label errors need {FOLDS} different images at '
                         f'least, there are {len(np.unique(groups))}.')
    x = unit(features).to(device)
    y = torch.as_tensor(np.array(labels), device=device)
    shares = (out_of_fold(x, y, folds(labels, groups, FOLDS, seed), classes,
                          seed)
              + vote(x, y, torch.as_tensor(groups, device=device), classes))
    rows = torch.arange(len(y), device=device)
    scores = (1 - shares[rows, y] / 2).cpu().numpy()
    shares[rows, y] = -1
    return Suspects(np.argsort(-scores, kind='stable'), scores,
                    shares.argmax(1).cpu().numpy())


def out_of_fold(x: torch.Tensor, labels: torch.Tensor, fold: np.ndarray,
                classes: int, seed: int) -> torch.Tensor:
    """Probabilities of a linear probe for rows that it was not trained on.

    The probes of all folds are one layer, trained at once.

    Args:
        x: ``(N, C)``.
        labels: ``(N, )``.
        fold: ``(N, )``, the fold of each row.
        classes: Number K.
        seed: Of the order of the rows.

    Returns:
        ``(N, K)``.
    """
    count = int(fold.max()) + 1
    fold = torch.as_tensor(fold, device=x.device)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    # from nothing, and so without a random number
    layer = skip_init(nn.Linear, x.shape[1], count * classes,
                      device=x.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), RATE,
                                  weight_decay=DECAY)
    size = min(max(64, len(x) // 200), 4096)
    steps = EPOCHS * -(-len(x) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    chance = torch.Generator().manual_seed(seed)

    def logits(rows: torch.Tensor) -> torch.Tensor:
        return layer((x[rows] - mean) / std).unflatten(1, (count, classes))

    others = torch.arange(count, device=x.device)
    with bar(EPOCHS, 'label errors', 'epochs') as advance:
        for _ in range(EPOCHS):
            order = torch.randperm(len(x), generator=chance).to(x.device)
            for rows in order.split(size):
                every = functional.cross_entropy(
                    logits(rows).flatten(0, 1),
                    labels[rows].repeat_interleave(count), reduction='none')
                seen = fold[rows, None] != others
                loss = (every.view(-1, count) * seen).sum() / len(rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            advance(1)
    with torch.no_grad():
        return torch.cat([
            logits(rows)[torch.arange(len(rows), device=x.device),
                         fold[rows]].softmax(1)
            for rows in torch.arange(len(x), device=x.device).split(_BLOCK)])


def vote(x: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor,
         classes: int) -> torch.Tensor:
    """Shares of the classes among the nearest images of other groups.

    Of more than :data:`VOTERS` images, as many at most are looked at.

    Args:
        x: ``(N, C)`` of unit length.
        labels: ``(N, )``.
        groups: ``(N, )``.
        classes: Number K.

    Returns:
        ``(N, K)``.
    """
    voters = torch.arange(0, len(x), -(-len(x) // VOTERS), device=x.device)
    known, labels, others = x[voters].T, labels[voters], groups[voters]
    count = min(NEIGHBOURS, len(voters) - 1)
    found = torch.zeros(len(x), classes, device=x.device)
    with bar(len(x), 'neighbours') as advance:
        for rows in torch.arange(len(x), device=x.device).split(_BLOCK):
            similar = x[rows] @ known
            similar[groups[rows, None] == others] = -2
            nearest, places = similar.topk(count)
            found[rows] = found[rows].scatter_add(
                1, labels[places], (nearest > -2) / count)
            advance(len(rows))
    return found
