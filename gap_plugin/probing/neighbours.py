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
_BLOCK = 512  # images at a time


def knn(train: FeatureStore, val: FeatureStore,
        counts: Sequence[int]) -> list[dict[str, Any]]:
    """Top-1 of the weighted vote of the k nearest training images.

    Similarity is the cosine. One product serves all k; memory does not grow
    with the images to classify.

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
    known = unit(train.features)
    labels = torch.tensor(np.array(train.labels))
    right = dict.fromkeys(counts, 0)
    for start in range(0, len(val), _BLOCK):
        rows = slice(start, start + _BLOCK)
        similar = unit(val.features[rows]) @ known.T
        nearest, places = similar.topk(max(counts))  # sorted
        # of the nearest one 1, so that nothing overflows
        weights = ((nearest - nearest[:, :1]) / TEMPERATURE).exp()
        classes = labels[places]
        truth = torch.tensor(np.array(val.labels[rows]))
        for k in right:
            votes = torch.zeros(len(truth), int(labels.max()) + 1)
            votes.scatter_add_(1, classes[:, :k], weights[:, :k])
            right[k] += int((votes.argmax(1) == truth).sum())
    return [dict(k=k, top1=100 * right[k] / len(val)) for k in counts]


def check_single(*stores: FeatureStore) -> None:
    """Refuse stores whose images have no label, or several."""
    for store in stores:
        refuse_unlabelled(store.labels, store.folder.name)
        if store.labels.ndim > 1:
            raise ValueError('knn, shots and logistic take one label an '
                             f'image, got several in {str(store.folder)!r}.')


def unit(features: np.ndarray) -> torch.Tensor:
    """Features of unit length."""
    found = torch.tensor(np.array(features, np.float32))
    return torch.nn.functional.normalize(found, eps=1e-12)
