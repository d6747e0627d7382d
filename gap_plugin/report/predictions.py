"""What a model says of the images of a split, and how right it is."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from mmpretrain.models.heads import ClsHead
from torch import nn

from ..features.store import FeatureStore
from ..probing import probe_model

_BLOCK = 512  # images at a time
#: Of the reliability diagram, as in https://arxiv.org/abs/1706.04599.
BINS = 15


def check_single_label(model: nn.Module) -> None:
    """Refuse a model that does not choose one of several classes.

    Raises:
        ValueError: With the type of its head.
    """
    head = getattr(model, 'head', None)
    if not isinstance(head, ClsHead):
        told = (f'a {type(head).__name__}' if isinstance(head, nn.Module)
                else 'no head')
        raise ValueError(
            f'{type(model).__name__} has {told}: a report is of a classifier '
            'that gives an image one of several classes, with a head such as '
            'LinearHead.')


@dataclass
class Predictions:
    """Scores of images whose classes are known.

    Attributes:
        scores (np.ndarray): ``(N, K)``, 0 to 1, of each class.
        labels (np.ndarray): ``(N, )``, class indices.
    """

    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number K."""
        return self.scores.shape[1]

    @cached_property
    def predicted(self) -> np.ndarray:
        """``(N, )``, the class of the highest score."""
        return self.scores.argmax(1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """``(N, )``, the highest score."""
        return self.scores.max(1)

    @cached_property
    def own(self) -> np.ndarray:
        """``(N, )``, the score of the label."""
        return self.scores[np.arange(len(self)), self.labels]

    @cached_property
    def right(self) -> np.ndarray:
        """``(N, )``, whether the prediction is the label."""
        return self.predicted == self.labels

    @cached_property
    def confusion(self) -> np.ndarray:
        """``(K, K)``, how many images of a class (row) are given which."""
        found = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(found, (self.labels, self.predicted), 1)
        return found

    @cached_property
    def mistakes(self) -> np.ndarray:
        """Rows that are wrong; where the label has the lowest score first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.lexsort((-self.confidence[wrong], self.own[wrong]))]

    def top(self, count: int) -> float:
        """Share of images whose label is among the highest scores."""
        higher = (self.scores > self.own[:, None]).sum(1)
        return float((higher < count).mean())


@torch.no_grad()
def predict(model: nn.Module, store: FeatureStore) -> Predictions:
    """What neck and head say of stored features, without the backbone.

    Args:
        model: The classifier, with its weights.
        store: Features of its fixed part, with labels.

    Raises:
        ValueError: If its predictions have no scores of classes.
    """
    was = model.training
    short = probe_model(model, store.description['in_tuple']).eval()
    device = next(model.parameters()).device
    found = []
    try:
        for start in range(0, len(store), _BLOCK):
            x = torch.tensor(np.array(store.features[start:start + _BLOCK],
                                      np.float32), device=device)
            samples = short.head.predict(short.extract_feat(x))
            if not all('pred_score' in sample for sample in samples):
                raise ValueError(
                    f'predictions of {type(model.head).__name__} have no '
                    'scores of classes, which a report is made of.')
            found.append(torch.stack([s.pred_score for s in samples]).cpu())
    finally:
        model.train(was)
    return Predictions(torch.cat(found).float().numpy(),
                       np.array(store.labels))


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy lie apart.

    Attributes:
        error: The expected calibration error, 0 to 1: the mean distance of
            accuracy and confidence over bins of equal width, weighted by
            the images in them.
        gap: Mean confidence minus accuracy: over 0 is over-confident.
        edges: Of the bins, ``BINS + 1``.
        counts: Images of each bin.
        accuracy: Of each bin; NaN where it is empty.
        confidence: Its mean, likewise.
    """

    error: float
    gap: float
    edges: np.ndarray
    counts: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray


def calibration(predictions: Predictions) -> Calibration:
    """Calibration of the predicted class, as Guo et al. measure it.

    See https://arxiv.org/abs/1706.04599.
    """
    edges = np.linspace(0, 1, BINS + 1)
    # right-closed, as there
    place = np.clip(np.searchsorted(edges, predictions.confidence) - 1, 0,
                    BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid='ignore'):
        accuracy, confidence = (
            np.bincount(place, values.astype(float), BINS) / counts
            for values in (predictions.right, predictions.confidence))
    apart = np.nan_to_num(np.abs(accuracy - confidence))
    return Calibration(
        float((apart * counts).sum() / len(predictions)),
        float(predictions.confidence.mean() - predictions.right.mean()),
        edges, counts, accuracy, confidence)
