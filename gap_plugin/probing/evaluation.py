"""Stock metrics of whole batches: no Python for a row until the epoch ends."""

import copy
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.evaluation import Accuracy, SingleLabelMetric
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import nn


def predictions(head: nn.Module, feats: Any,
                samples: list[DataSample]) -> list[dict]:
    """Predictions of a head.

    Args:
        head: The head.
        feats: Its input, of N rows.
        samples: Of the rows, or one with the labels of all of them.

    Returns:
        A dict for each row, as stock metrics take them; of labels in one
        sample, one dict of all rows, for :class:`WholeBatches`.
    """
    if len(feats[-1] if isinstance(feats, tuple) else feats) == len(samples):
        # as dicts, since another head may write into the same samples
        return [sample.to_dict() for sample in head.predict(feats, samples)]
    return [dict(pred_score=head(feats).softmax(1),
                 gt_label=samples[0].gt_label)]


def build_evaluator(metrics: Any, head: nn.Module,
                    labels: np.ndarray) -> Evaluator:
    """The evaluator of a config; of whole batches where that is the same.

    Args:
        metrics: The config.
        head: Whose predictions are evaluated.
        labels: What they are held against: ``(N, )`` or scores ``(N, K)``.
    """
    evaluator = Evaluator(copy.deepcopy(metrics))
    stock = all(getattr(type(head), name, None) is getattr(ClsHead, name)
                for name in ('predict', '_get_predictions'))
    if stock and labels.ndim == 1 and all(
            type(m) in (Accuracy, SingleLabelMetric)
            for m in evaluator.metrics):
        return WholeBatches(evaluator.metrics)
    return evaluator


class WholeBatches(Evaluator):
    """Evaluates scores and labels of whole batches, in one process.

    The metrics compute from what they would have collected themselves, row
    by row.
    """

    def __init__(self, metrics: Any) -> None:
        super().__init__(metrics)
        self._batches: list[dict] = []

    def process(self, data_samples: list[dict],
                data_batch: Any = None) -> None:
        """Take the predictions of a batch."""
        self._batches += data_samples

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of all rows since the last call."""
        columns = [torch.cat([batch[key] for batch in self._batches]).cpu()
                   for key in ('pred_score', 'gt_label')]
        self._batches.clear()
        rows = [dict(pred_score=score, gt_label=label) for score, label in
                zip(columns[0].unbind(), columns[1].split(1), strict=True)]
        return {
            f'{metric.prefix}/{key}' if metric.prefix else key: value
            for metric in self.metrics
            for key, value in metric.compute_metrics(rows).items()
        }
