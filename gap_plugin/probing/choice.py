"""Which setting is kept: by cross-validation, or by the validation split."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
from mmengine.config import Config

from .metrics import numbers

#: Learning rates of DINOv2's linear evaluation, for SGD at a batch of 256
#: (https://arxiv.org/abs/2304.07193).
DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2,
                2e-2, 5e-2, 1e-1)


def grid(rates: Sequence[float] | None, decays: Sequence[float] | None,
         norms: Sequence[bool] | None = None) -> dict[str, dict[str, float]]:
    """All pairs of learning rates and weight decays.

    Args:
        rates: Learning rates, positive; None for that of the config.
        decays: Weight decays, 0 or more; None for that of the config.
        norms: With the ``BNNeck`` of the config, without it, or both; None
            for as it is.

    Returns:
        Name -> ``lr``, ``weight_decay`` and ``norm``, as far as given.

    Raises:
        ValueError: If a value is out of its range, or given twice.
    """
    lists = {key: values for key, values in
             dict(lr=rates, weight_decay=decays).items() if values}
    for key, values in lists.items():
        for value in values:
            if not (value > 0 or key == 'weight_decay' and value == 0) or (
                    value == float('inf')):
                told = dict(lr='learning rate', weight_decay='weight decay')
                raise ValueError(f'{value} is no {told[key]}: learning rates '
                                 'are above 0, weight decays 0 at least.')
    if norms:
        lists['norm'] = norms
    if not lists:
        return {}
    found = [dict(zip(lists, values, strict=True))
             for values in itertools.product(*lists.values())]
    names = {','.join(f'{key}={value:g}' for key, value in one.items()): one
             for one in found}
    if len(names) < len(found):
        raise ValueError('a learning rate or a weight decay is given twice: '
                         f'{lists}.')
    return names


def folds(labels: np.ndarray, names: np.ndarray, count: int,
          seed: int) -> np.ndarray:
    """The fold of every row, alike in their shares of the classes.

    Args:
        labels: ``(N, )`` class indices, or ``(N, K)`` scores, which are
            spread at random.
        names: ``(N, )`` of the images: rows of one image stay together.
        count: Number of folds.
        seed: Of the order within a class.

    Raises:
        ValueError: If there are fewer images than folds.
    """
    _, first, image = np.unique(names, return_index=True,
                                return_inverse=True)
    if len(first) < count:
        raise ValueError(f'{len(first)} training images do not make {count} '
                         'folds: ask for fewer; or for none, by one setting '
                         "or select='val', and without logistic.")
    order = np.random.default_rng(seed).permutation(len(first))
    if labels.ndim == 1:  # a class after the other
        order = order[np.argsort(labels[first][order], kind='stable')]
    found = np.empty(len(first), np.int64)
    found[order] = np.arange(len(first)) % count
    return found[image]


def interval(metric: str, percent: float, count: int) -> dict[str, float]:
    """Wilson's 95 % interval of an accuracy on some images.

    Returns:
        ``low`` and ``high`` in percent; nothing for other metrics.
    """
    if not re.search(r'\btop\d+$', metric) or not 0 <= percent <= 100:
        return {}
    share, square = percent / 100, 1.96**2 / count
    middle = share + square / 2
    half = np.sqrt(share * (1 - share) * square + square * square / 4)
    return {name: float(100 * (middle + sign * half) / (1 + square))
            for name, sign in (('low', -1), ('high', 1))}


class Score:
    """What is chosen by: the metric that checkpoints are the best of.

    Args:
        cfg: The config, whose checkpoint hook names it by ``save_best``, and
            what of it is better.

    Attributes:
        metric (str): Its name; by default that of the first number that is
            measured, and empty before.
    """

    def __init__(self, cfg: Config) -> None:
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        wanted, self._rule = (
            value[0] if isinstance(value, (list, tuple)) and value else value
            for value in map(hook.get, ('save_best', 'rule')))
        self.metric = wanted if wanted and wanted not in (
            True, 'auto') else ''
        less = hook.get('less_keys') or ['loss']
        self._less = [less] if isinstance(less, str) else less

    def __call__(self, metrics: dict) -> float:
        """The larger the better; NaN is the worst.

        Raises:
            ValueError: If the metric is missing, or no number.
        """
        known = numbers(metrics)
        if not self.metric and known:
            self.metric = next(iter(known))
        if self.metric not in known:
            raise ValueError(
                f'save_best of the checkpoint hook is {self.metric!r}, but '
                f'the numbers that the evaluator gives are {list(known)}.')
        value = known[self.metric]
        value = -value if self.less else value
        return -np.inf if np.isnan(value) else value

    @property
    def less(self) -> bool:
        """Whether less of the metric is better."""
        return self._rule == 'less' or not self._rule and any(
            key.lower() in self.metric.lower() for key in self._less)
