"""The evaluator of a config, over the stored features of a split."""

import copy
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmpretrain.evaluation import Accuracy

from .candidates import Candidates
from .rows import Rows

_BLOCK = 1024  # rows at a time where no image has a result of its own


@torch.no_grad()
def evaluate(metrics: Any, trained: Candidates, rows: Rows,
             batch_size: int) -> list[dict[str, float]]:
    """Metrics of every setting.

    Accuracy is counted batch by batch; for other metrics the predictions of
    each image are handed to MMEngine's evaluator, as in a test.

    Args:
        metrics: The evaluator of the config.
        trained: What is evaluated.
        rows: What it is evaluated on.
        batch_size: Rows at a time.

    Returns:
        For each, name -> value; NaN for one that has diverged.
    """
    trained.train(False)
    counts = [Runner.build_evaluator(None, copy.deepcopy(metrics))
              for _ in trained.models]  # it looks at nothing of a runner
    counted = (trained.plain and rows.labels.ndim == 1
               and type(counts[0]) is Evaluator and all(
                   type(m) is Accuracy for m in counts[0].metrics))
    if counted:
        counts = [_Count(metric) for metric in counts[0].metrics]
        batch_size = max(batch_size, _BLOCK)
    for evaluator in counts:
        evaluator.dataset_meta = rows.metainfo
    for start in range(0, len(rows), batch_size):
        x, labels = rows.take(slice(start, start + batch_size))
        if counted:
            scores = trained.logits(x).softmax(2)
            for count in counts:
                count.add(scores, labels)
        else:
            for evaluator, found in zip(counts, trained.predict(x, labels),
                                        strict=True):
                try:
                    evaluator.process(found)
                except KeyError as error:
                    raise ValueError(
                        f'a metric of the evaluator needs {error}, which '
                        'these images do not have: with several labels an '
                        'image, use AveragePrecision or MultiLabelMetric.'
                    ) from None
    if counted:
        found = [{} for _ in trained.models]
        for count in counts:
            for one, values in zip(found, count.metrics(len(rows)),
                                   strict=True):
                one.update(values)
    else:
        found = [evaluator.evaluate(len(rows)) for evaluator in counts]
    return [dict.fromkeys(numbers(one), float('nan')) if diverged else one
            for one, diverged in zip(found, trained.diverged(), strict=True)]


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Those metrics that are one number, and no list or matrix."""
    return {key: float(value) for key, value in metrics.items()
            if isinstance(value, (int, float, np.number)) or (
                isinstance(value, torch.Tensor) and value.numel() == 1)}


class _Count:
    """What MMPretrain's ``Accuracy`` gives, for several at once.

    Args:
        metric: Whose options are taken.
    """

    def __init__(self, metric: Accuracy) -> None:
        self._metric = metric
        self._names = {}
        for k in metric.topk:
            for threshold in metric.thrs:
                name = f'{metric.prefix}/top{k}' if metric.prefix else (
                    f'top{k}')
                if len(metric.thrs) > 1:
                    name += ('_no-thr' if threshold is None else
                             f'_thr-{threshold:.2f}')
                self._names[name] = k, threshold
        self._right: dict[str, torch.Tensor] = {}

    def add(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch of scores ``(N, G, K)``."""
        most = max(self._metric.topk)
        if most > scores.shape[2]:
            raise ValueError(
                f'val_evaluator: top-{most} accuracy is asked for, but there '
                f'are {scores.shape[2]} classes: set topk of Accuracy.')
        best, classes = scores.topk(most, dim=2)
        hit = classes == labels[:, None, None]
        for name, (k, threshold) in self._names.items():
            over = hit if threshold is None else hit & (best > threshold)
            count = over[:, :, :k].sum((0, 2))
            self._right[name] = self._right.get(name, 0) + count

    def metrics(self, size: int) -> list[dict[str, float]]:
        """Percentages of each, in the host's single precision."""
        percent = {name: (count.float() * (100. / size)).tolist()
                   for name, count in self._right.items()}
        return [dict(zip(percent, values, strict=True))
                for values in zip(*percent.values(), strict=True)]
