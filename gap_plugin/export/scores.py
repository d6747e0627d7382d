"""A classifier as a function of its images alone, which can be traced."""

import numpy as np
import torch
from mmpretrain.models.heads import MultiLabelClsHead
from torch import nn

from ..visualization.class_activation import fold
from .checking import Samples, in_batches


class Scores(nn.Module):
    """A classifier as a function of its images, to be traced.

    Args:
        model: The classifier.
        cam: Whether the class activation maps are given, too.

    Attributes:
        activation: ``'softmax'`` or ``'sigmoid'``, as the head predicts.
        outputs: Names of what it gives, of ``'scores'`` ``(N, K)``,
            ``'logits'`` ``(N, K)`` and ``'maps'`` ``(N, K, h, w)``, in
            logits.

    Raises:
        ValueError: If it has no exact map, with the part that is why.
    """

    def __init__(self, model: nn.Module, cam: bool = False) -> None:
        super().__init__()
        self.model = model
        self.activation = 'sigmoid' if isinstance(
            getattr(model, 'head', None), MultiLabelClsHead) else 'softmax'
        self.folded = fold(model) if cam else None
        self.outputs = ('scores', 'logits', *(['maps'] if cam else []))

    def forward(self, images: torch.Tensor
                ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What :attr:`outputs` names.

        Args:
            images: As they leave the data preprocessor.
        """
        found = {}
        if self.folded is None:
            logits = self.model(images, mode='tensor')
        else:
            features = self.model.backbone(images)
            found['maps'] = self.folded.maps(features)
            if self.model.with_neck:
                features = self.model.neck(features)
            logits = self.model.head(features)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ValueError(
                f'{type(self.model).__name__} gives no logits (N, K) of '
                'images: a file is of a classifier with one head.')
        found['logits'] = logits
        found['scores'] = self.predicted(logits)
        first, *others = (found[name] for name in self.outputs)
        return (first, *others) if others else first

    def predicted(self, logits: torch.Tensor) -> torch.Tensor:
        """The scores that the head predicts."""
        return (logits.sigmoid() if self.activation == 'sigmoid' else
                logits.softmax(1))


def reference(model: nn.Module, samples: Samples, module: Scores
              ) -> tuple[np.ndarray, ...]:
    """Scores, logits and maps of the model, which predicts the same scores.

    Raises:
        ValueError: If it predicts others: its head is none that is known.
    """
    with torch.no_grad():
        expected = in_batches(module, samples.inputs)
        predicted = [sample.pred_score for sample in model(
            samples.inputs[:8], mode='predict')]
    if not np.allclose(expected[0][:8], torch.stack(predicted), atol=1e-5):
        head = getattr(model, 'head', model)
        raise ValueError(
            f'{type(head).__name__} predicts other scores than the '
            f'{module.activation} of its logits: it is none that can be '
            'exported.')
    return expected
