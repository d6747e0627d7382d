"""Batch normalisation and a linear layer as one product, for many at once.

Of fixed features no gradient is asked for. With its scale and shift folded
into the weights behind it, batch normalisation has no backward pass left, and
the features are normalised once for all classifiers trained on them.
"""

import copy
from collections.abc import Iterable

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.models.heads import LinearClsHead, MultiLabelLinearClsHead
from torch import nn
from torch.nn import functional

from ..models import BNNeck, LinearHead
from ..models.checks import check_width
from .evaluation import has_stock

#: Heads whose logits are those of their layer ``fc``.
_LINEAR = (LinearHead, LinearClsHead, MultiLabelLinearClsHead)


def is_linear(model: nn.Module) -> bool:
    """Whether all there is, is one batch normalisation and a linear layer."""
    if not has_stock(model, ImageClassifier, 'loss', 'predict',
                     'extract_feat'):
        return False
    neck = getattr(model, 'neck', None)
    parts = list(neck) if isinstance(neck, nn.Sequential) else [neck]
    parts = [p for p in parts
             if p is not None and not isinstance(p, nn.Identity)]
    known = [p for p in parts if type(p) is BNNeck
             and type(p.bn) is nn.BatchNorm1d and p.bn.momentum is not None]
    dropout = getattr(model.head, 'dropout', None)
    return (type(model.head) in _LINEAR and len(parts) == len(known) < 2
            and not (dropout is not None and dropout.p))


class FusedClassifiers:
    """Logits of several classifiers by one product.

    Args:
        models: For which :func:`is_linear` holds, all of one form. Their
            norms share the buffers of the first one from now on.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        models = list(models)
        self.head = models[0].head
        self.layers = [model.head.fc for model in models]
        self.necks = [m for model in models for m in model.modules()
                      if isinstance(m, BNNeck)]
        self.norms = [neck.bn for neck in self.necks]
        for norm in self.norms[1:]:  # statistics of the same features
            norm._buffers = self.norms[0]._buffers

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Classify.

        Args:
            x: Features ``(N, C)``.

        Returns:
            Logits ``(N, K)`` for each.

        Raises:
            ValueError: As the parts' own forward passes do.
        """
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        if not self.norms:
            check_width(self.head, x, self.head.in_channels)
        else:
            self.necks[0].check(x)
            norm = self.norms[0]
            if norm.training and norm.track_running_stats:
                norm.num_batches_tracked += 1
            x = functional.batch_norm(
                x, norm.running_mean, norm.running_var,
                training=norm.training, momentum=norm.momentum, eps=norm.eps)
            if norm.affine:
                biases = [
                    weight @ n.bias if bias is None else
                    torch.addmv(bias, weight, n.bias) for weight, bias, n in
                    zip(weights, biases, self.norms, strict=True)]
                weights = [weight * n.weight for weight, n in
                           zip(weights, self.norms, strict=True)]
        bias = None if biases[0] is None else _join(biases)
        every = functional.linear(x, _join(weights), bias)
        return every.split(len(weights[0]), dim=1)


def _join(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def head_on_logits(head: nn.Module) -> nn.Module:
    """The head, for logits: losses and predictions as its own."""
    head = copy.copy(head)
    head.forward = lambda logits: logits
    return head
