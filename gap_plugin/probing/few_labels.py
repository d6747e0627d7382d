"""Linear classifiers of scikit-learn on stored features."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..features.store import FeatureStore
from .choice import folds
from .neighbours import check_single, unit

#: Inverse regularisation strengths that are tried.
STRENGTHS = tuple(10. ** k for k in range(-4, 4))


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
    logistic_regression = _sklearn()
    check_single(train, val)
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
    features, known = _scaled(train), _scaled(val)
    rows = []
    for n in shots:
        found = []
        for draw in range(draws):
            rng = np.random.default_rng([seed, n, draw])
            chosen = np.concatenate([
                rng.choice(rows_of, n, replace=False)
                for rows_of in members.values()])
            model = logistic_regression(max_iter=1000)
            model.fit(features[chosen], labels[chosen])
            found.append(_top1(model.predict(known), val))
        rows.append(dict(shots=n, top1=float(np.mean(found)),
                         std=float(np.std(found))))
    return rows


def logistic(train: FeatureStore, val: FeatureStore, count: int = 5,
             seed: int = 0) -> dict[str, Any]:
    """Top-1 of logistic regression, its C chosen by cross-validation.

    Features are scaled as in :func:`few_shot`.

    Args:
        train: Features to train on, and to choose C on.
        val: Features to classify.
        count: Number of folds.
        seed: Of the folds.

    Returns:
        ``C``, ``top1`` on ``val``, ``cv`` and its ``std`` over the folds, in
        percent.

    Raises:
        ValueError: If images have several labels, or there are fewer than
            folds, or of one class.
        ImportError: If scikit-learn is missing.
    """
    logistic_regression = _sklearn()
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    check_single(train, val)
    labels = np.asarray(train.labels)
    fold = folds(labels, np.asarray(train.sample_ids), count, seed)
    if any(len(np.unique(labels[fold != k])) < 2 for k in range(count)):
        raise ValueError('logistic: without one of the folds, all training '
                         'images are of one class; leave it out.')
    search = GridSearchCV(logistic_regression(max_iter=1000),
                          dict(C=STRENGTHS), cv=PredefinedSplit(fold))
    search.fit(_scaled(train), labels)
    spread = search.cv_results_['std_test_score'][search.best_index_]
    return dict(C=search.best_params_['C'],
                cv=100 * float(search.best_score_), std=100 * float(spread),
                top1=_top1(search.predict(_scaled(val)), val))


def _sklearn() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ImportError('shots and logistic need scikit-learn: pip install '
                          '"gap_plugin[probe]".') from None
    return LogisticRegression


def _scaled(store: FeatureStore) -> np.ndarray:
    """Features of unit length, times the square root of their number."""
    return unit(store.features).numpy() * np.sqrt(store.features.shape[1])


def _top1(found: np.ndarray, store: FeatureStore) -> float:
    return float((found == store.labels).mean() * 100)
