"""k nearest neighbours on stored features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..features.images import refuse_unlabelled
from ..features.store import FeatureStore

#: Weight of a neighbour of cosine similarity s is exp(s / 0.07), as in
#: https://arxiv.org/abs/1805.01978 and in the k-NN evaluation of DINO.
TEMPERATURE = 0.07
# images at a time; the more are known, the less their choice takes
_KNOWN, _ROWS = 16384, 1024


def knn(train: FeatureStore, val: FeatureStore,
        counts: Sequence[int]) -> list[dict[str, Any]]:
    """Top-1 of the weighted vote of the k nearest training images.

    Similarity is the cosine. One product serves all k, block by block: what
    stays in memory are the nearest of each image.

    Args:
        train: Features of known labels.
        val: Features to classify.
        counts: Values of k.

    Returns:
        A row for each: ``k`` and ``top1`` in percent.

    Raises:
        ValueError: If a k is not from 1 to the number of training images, or
            images have several labels.
    """
    check_single(train, val)
    for k in counts:
        if not 1 <= k <= len(train):
            raise ValueError(f'knn={k}: must be from 1 to the '
                             f'{len(train)} training images.')
    similar = torch.full((len(val), max(counts)), -torch.inf)
    labels = torch.zeros(similar.shape, dtype=torch.int64)
    for some in _blocks(train, _KNOWN):
        known = unit(train.features[some])
        their = torch.tensor(np.array(train.labels[some]))
        for rows in _blocks(val, _ROWS):
            found, places = (unit(val.features[rows]) @ known.T).topk(
                min(max(counts), len(their)))
            similar[rows], nearest = torch.cat([similar[rows], found], 1).topk(
                max(counts))  # sorted
            labels[rows] = torch.cat([labels[rows], their[places]], 1).gather(
                1, nearest)
        del known  # or there are two blocks while the next one is read
    # of the nearest one 1, so that nothing overflows
    weights = ((similar - similar[:, :1]) / TEMPERATURE).exp()
    truth = torch.tensor(np.array(val.labels))
    table = []
    for k in counts:
        right = 0
        for rows in _blocks(val, _ROWS):
            votes = torch.zeros(len(truth[rows]), int(labels.max()) + 1)
            votes.scatter_add_(1, labels[rows, :k], weights[rows, :k])
            right += int((votes.argmax(1) == truth[rows]).sum())
        table.append(dict(k=k, top1=100 * right / len(val)))
    return table


def _blocks(store: FeatureStore, size: int) -> list[slice]:
    return [slice(start, start + size)
            for start in range(0, len(store), size)]


def check_single(*stores: FeatureStore) -> None:
    """Refuse stores whose images have no label, or several."""
    for store in stores:
        refuse_unlabelled(store.labels, store.folder.name)
        if store.labels.ndim > 1:
            raise ValueError('knn, shots and logistic take one label an '
                             f'image, got several in {str(store.folder)!r}.')


def unit(features: np.ndarray) -> torch.Tensor:
    """Features of unit length."""
    found = torch.from_numpy(np.array(features, np.float32))
    return torch.nn.functional.normalize(found, eps=1e-12)
