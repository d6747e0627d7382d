"""What is trained: neck and head of a classifier, once for each setting."""

import copy
from pathlib import Path
from typing import Any

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.models.heads import (
    ClsHead,
    LinearClsHead,
    MultiLabelClsHead,
    MultiLabelLinearClsHead,
)
from mmpretrain.models.losses import CrossEntropyLoss, LabelSmoothLoss
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional

from ..features.fixed_part import FixedPart
from ..files import written_whole
from ..models import BNNeck, LinearHead
from ..models.checks import check_width

#: Heads whose logits are those of their layer ``fc``.
_LINEAR = (LinearHead, LinearClsHead, MultiLabelLinearClsHead)

#: Losses that are a sum over rows, divided by ``avg_factor``.
_BY_ROW = (CrossEntropyLoss, LabelSmoothLoss)


class _Stored(nn.Module):
    """Stands where the backbone stood: features come as they are."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, x: torch.Tensor) -> Any:
        return (x, ) if self.in_tuple else x

    def get_layer_depth(self, *_: str) -> tuple[int, int]:
        """Of what comes behind a backbone: its rate does not decay."""
        return 0, 1


def check_frozen(model: nn.Module) -> None:
    """Refuse a backbone whose features would change in training.

    Raises:
        ValueError: If it has weights that are trained, or norms that follow
            the batches.
    """
    was = model.training
    model.train()
    trained = sum(p.requires_grad for p in model.backbone.parameters())
    moving = sum('running_var' in m._buffers and m.training
                 for m in model.backbone.modules())
    if not was:
        model.eval()
    if trained or moving:
        raise ValueError(
            f'the backbone is not frozen ({trained} parameters are trained, '
            f'{moving} norms follow the batches), so that its features would '
            "not stay: set frozen_stages='all' of TimmFeatureBackbone, or "
            'probe it as it is with freeze=True.')


def probe_model(model: nn.Module, in_tuple: bool = True) -> nn.Module:
    """The classifier with stored features in place of its fixed part.

    Its parameters keep their names, and are the model's own.

    Raises:
        ValueError: If nothing of it is left to train.
    """
    fixed = FixedPart(model)
    # shallow: the parts that are trained stay those of the model
    short = copy.copy(model)
    short._modules = dict(model._modules)
    short.backbone = _Stored(in_tuple)
    short.data_preprocessor = nn.Identity()
    short.one_hot = getattr(model.data_preprocessor, 'to_onehot', False)
    if fixed.necks == ['neck']:
        short.neck = nn.Identity()
    elif fixed.necks:
        short.neck = nn.Sequential()
        for name, part in model.neck.named_children():
            short.neck.add_module(
                name,
                nn.Identity() if f'neck.{name}' in fixed.necks else part)
    if not any(p.requires_grad for p in short.parameters()):
        raise ValueError('neither neck nor head of the config has a '
                         'parameter that is trained: give it a head, such '
                         'as LinearHead.')
    return short


def save_whole(model: nn.Module, path: str | Path, meta: dict) -> None:
    """Write an ordinary checkpoint of the whole model, or nothing."""
    with written_whole(path) as temporary:
        torch.save(dict(meta=meta, state_dict={
            name: value.cpu() for name, value in model.state_dict().items()
        }), temporary)


class Candidates:
    """Neck and head, once for each setting, all on the same features.

    Batch normalisation and a linear layer, which is the usual case, are one
    product: of fixed features no gradient is asked for, so that with its
    scale and shift folded into the weights behind it batch normalisation has
    no backward pass left. Other necks and heads run one after another.

    Args:
        model: Of :func:`probe_model`; trained itself if there is one setting.
        count: Number G of settings.

    Attributes:
        models (list[nn.Module]): They start alike.
        linear (bool): Whether all there is, is one product.
        plain (bool): Whether predictions are the softmax of the logits.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self.models = [model] if count == 1 else [
            copy.deepcopy(model) for _ in range(count)]
        self.linear = _is_linear(model)
        self._one_hot = (model.one_hot
                         or isinstance(model.head, MultiLabelClsHead))
        self.plain = (_stock(model, ImageClassifier, 'predict')
                      and _stock(model.head, ClsHead, 'predict',
                                 '_get_predictions'))
        self._norms = [m for one in self.models for m in one.modules()
                       if isinstance(m, BNNeck)] if self.linear else []
        for neck in self._norms[1:]:  # statistics of the same features
            neck.bn._buffers = self._norms[0].bn._buffers

    def train(self, mode: bool = True) -> None:
        """Set the mode of all of them."""
        for model in self.models:
            model.train(mode)

    def loss(self, x: torch.Tensor, labels: torch.Tensor) -> dict:
        """Losses of a batch.

        Args:
            x: ``(N, C)``.
            labels: ``(N, )`` or scores ``(N, K)``.

        Returns:
            ``loss``, the sum over all settings, and what else the head tells
            of the last one.
        """
        if self._one_hot and labels.ndim == 1:
            labels = functional.one_hot(
                labels, self.models[0].head.num_classes).float()
        if not self.linear:
            samples = _samples(labels)
            found = [model.parse_losses(model.loss(x, samples))
                     for model in self.models]
            return dict(found[-1][1], loss=sum(loss for loss, _ in found))
        module = self.models[0].head.loss_module
        logits, count = self.logits(x), len(self.models)
        if count == 1 or type(module) in _BY_ROW:
            return dict(loss=module(
                logits.flatten(0, 1), labels if count == 1 else
                labels.repeat_interleave(count, 0), avg_factor=len(x)))
        return dict(loss=sum(
            model.head.loss_module(one, labels, avg_factor=len(x)) for
            model, one in zip(self.models, logits.unbind(1), strict=True)))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, G, K)``."""
        if not self.linear:
            return torch.stack([model.head(model.extract_feat(x))
                                for model in self.models], 1)
        layers = [model.head.fc for model in self.models]
        weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers]
        if not self._norms:
            check_width(self.models[0].head, x, layers[0].in_features)
        else:
            self._norms[0].check(x)
            norms = [neck.bn for neck in self._norms]
            norm = norms[0]
            if norm.training and norm.track_running_stats:
                norm.num_batches_tracked += 1
            x = functional.batch_norm(
                x, norm.running_mean, norm.running_var,
                training=norm.training, momentum=norm.momentum, eps=norm.eps)
            if norm.affine:
                biases = [
                    weight @ n.bias if bias is None else
                    torch.addmv(bias, weight, n.bias) for weight, bias, n in
                    zip(weights, biases, norms, strict=True)]
                weights = [weight * n.weight for weight, n in
                           zip(weights, norms, strict=True)]
        bias = None if biases[0] is None else _join(biases)
        every = functional.linear(x, _join(weights), bias)
        return every.unflatten(1, (len(layers), -1))

    def predict(self, x: torch.Tensor,
                labels: torch.Tensor) -> list[list[DataSample]]:
        """Predictions of each setting, by the classifiers' own means."""
        return [model.predict(x, _samples(labels)) for model in self.models]

    def diverged(self) -> list[bool]:
        """Whether each has a weight that is not finite."""
        return [not all(p.isfinite().all() for p in model.parameters())
                for model in self.models]


def _join(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _samples(labels: torch.Tensor) -> list[DataSample]:
    """Labels as data samples: class indices, or the scores of each row."""
    if labels.is_floating_point():
        return [DataSample().set_gt_score(row) for row in labels]
    return [DataSample().set_gt_label(row) for row in labels[:, None]]


def _stock(part: nn.Module, kind: type, *names: str) -> bool:
    """Whether methods of a part are those of a class of MMPretrain."""
    return all(getattr(type(part), name, None) is getattr(kind, name)
               for name in names)


def _is_linear(model: nn.Module) -> bool:
    """Whether all there is, is one batch normalisation and a linear layer."""
    neck = getattr(model, 'neck', None)
    parts = [m for m in (neck if isinstance(neck, nn.Sequential) else [neck])
             if m is not None and not isinstance(m, nn.Identity)]
    dropout = getattr(model.head, 'dropout', None)
    return (_stock(model, ImageClassifier, 'loss', 'predict', 'extract_feat')
            and type(model.head) in _LINEAR
            and not getattr(model.head, 'cal_acc', False)
            and not (dropout is not None and dropout.p)
            and len(parts) < 2 and all(
                type(p) is BNNeck and type(p.bn) is nn.BatchNorm1d
                and p.bn.momentum is not None for p in parts))
