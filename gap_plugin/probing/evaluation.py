"""Stock metrics of whole batches: no Python for a row until the epoch ends."""

import copy
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.evaluation import Accuracy, SingleLabelMetric
from mmpretrain.models import ImageClassifier
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import nn


def of_whole_batch(samples: list[DataSample]) -> bool:
    """Whether one sample holds the labels of all rows of a batch."""
    return bool(samples[0].get('whole'))


def whole_predictions(logits: torch.Tensor,
                      samples: list[DataSample]) -> list[dict]:
    """Predictions of a batch, in one dict, for :class:`BatchEvaluator`."""
    return [dict(pred_score=logits.softmax(1), gt_label=samples[0].gt_label)]


def build_evaluator(metrics: Any, model: nn.Module,
                    labels: np.ndarray) -> Evaluator:
    """The evaluator of a config; of whole batches where that is the same.

    Args:
        metrics: The config.
        model: Whose predictions are evaluated.
        labels: What they are held against: ``(N, )`` or scores ``(N, K)``.
    """
    evaluator = Evaluator(copy.deepcopy(metrics))
    if (labels.ndim == 1 and has_stock(model, ImageClassifier, 'predict')
            and has_stock(model.head, ClsHead, 'predict', '_get_predictions')
            and all(type(m) in (Accuracy, SingleLabelMetric)
                    for m in evaluator.metrics)):
        return BatchEvaluator(evaluator.metrics)
    return evaluator


def has_stock(part: nn.Module, kind: type, *names: str) -> bool:
    """Whether methods of a part are those of a class of MMPretrain."""
    return all(getattr(type(part), name, None) is getattr(kind, name)
               for name in names)


class BatchEvaluator(Evaluator):
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
        self._batches += [{key: value.cpu() for key, value in batch.items()}
                          for batch in data_samples]

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of all rows since the last call."""
        columns = [torch.cat([batch[key] for batch in self._batches])
                   for key in ('pred_score', 'gt_label')]
        self._batches.clear()
        rows = [dict(pred_score=score, gt_label=label) for score, label in
                zip(columns[0].unbind(), columns[1].split(1), strict=True)]
        return {
            f'{metric.prefix}/{key}' if metric.prefix else key: value
            for metric in self.metrics
            for key, value in metric.compute_metrics(rows).items()
        }
