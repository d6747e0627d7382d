"""k nearest neighbours and few-shot probes on stored features.

Both are scikit-learn's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..features.images import refuse_unlabelled
from ..features.store import FeatureStore

#: Weight of a neighbour of cosine similarity s is exp(s / 0.07), as in
#: https://arxiv.org/abs/1805.01978 and in the k-NN evaluation of DINO.
TEMPERATURE = 0.07


def knn(train: FeatureStore, val: FeatureStore,
        counts: Sequence[int]) -> list[dict[str, Any]]:
    """Top-1 of the weighted vote of the k nearest training images.

    Similarity is the cosine.

    Args:
        train: Features of known labels.
        val: Features to classify.
        counts: Values of k.

    Returns:
        A row for each: ``k`` and ``top1`` in percent.

    Raises:
        ValueError: If a k is not from 1 to the number of training images, or
            images have several labels.
        ImportError: If scikit-learn is missing.
    """
    neighbors = _sklearn('neighbors')
    _check_single(train, val)
    for k in counts:
        if not 1 <= k <= len(train):
            raise ValueError(f'knn={k}: must be from 1 to the '
                             f'{len(train)} training images.')
    # the same order as by cosine: d^2 = 2 - 2 s
    vote = neighbors.KNeighborsClassifier(
        max(counts), algorithm='brute',
        weights=lambda d: np.exp(-d * d / 2 / TEMPERATURE))
    vote.fit(_unit(train), train.labels)
    known = _unit(val)
    rows = []
    for k in counts:
        found = vote.set_params(n_neighbors=k).predict(known)
        rows.append(dict(k=k, top1=_top1(found, val)))
    return rows


def few_shot(train: FeatureStore, val: FeatureStore, shots: Sequence[int],
             seed: int = 0, draws: int = 5) -> list[dict[str, Any]]:
    """Top-1 of a linear classifier trained on a few images of each class.

    Logistic regression of scikit-learn, with its default C of 1, on features
    of unit length, scaled by the square root of their number.

    Args:
        train: Features to draw from.
        val: Features to classify.
        shots: Images of each class.
        seed: Of the draws.
        draws: How often images are drawn, for the mean and its spread.

    Returns:
        A row for each: ``shots``, ``top1`` (mean over draws) and ``std`` in
        percent.

    Raises:
        ValueError: If a class has fewer images, or images have several
            labels.
        ImportError: If scikit-learn is missing.
    """
    linear_model = _sklearn('linear_model')
    _check_single(train, val)
    labels = np.asarray(train.labels)
    members = {c: np.flatnonzero(labels == c) for c in np.unique(labels)}
    rarest = min(members, key=lambda c: len(members[c]))
    if len(members) < 2:
        raise ValueError('shots: all training images are of one class.')
    for n in shots:
        if not 1 <= n <= len(members[rarest]):
            raise ValueError(f'shots={n}: must be from 1 to the '
                             f'{len(members[rarest])} training images of '
                             f'class {rarest}.')
    scale = np.sqrt(train.features.shape[1])
    features, known = _unit(train) * scale, _unit(val) * scale
    rows = []
    for n in shots:
        found = []
        for draw in range(draws):
            rng = np.random.default_rng([seed, n, draw])
            chosen = np.concatenate([
                rng.choice(rows_of, n, replace=False)
                for rows_of in members.values()])
            model = linear_model.LogisticRegression(max_iter=1000)
            model.fit(features[chosen], labels[chosen])
            found.append(_top1(model.predict(known), val))
        rows.append(dict(shots=n, top1=float(np.mean(found)),
                         std=float(np.std(found))))
    return rows


def _sklearn(module: str) -> Any:
    try:
        import sklearn.linear_model
        import sklearn.neighbors
    except ImportError:
        raise ImportError('knn and shots need scikit-learn: pip install '
                          '"gap_plugin[probe]".') from None
    return getattr(sklearn, module)


def _check_single(*stores: FeatureStore) -> None:
    for store in stores:
        refuse_unlabelled(store.labels, store.folder.name)
        if store.labels.ndim > 1:
            raise ValueError('knn and shots take one label an image, got '
                             f'several in {str(store.folder)!r}.')


def _unit(store: FeatureStore) -> np.ndarray:
    features = np.asarray(store.features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-12)


def _top1(found: np.ndarray, store: FeatureStore) -> float:
    return float((found == store.labels).mean() * 100)
