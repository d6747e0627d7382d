"""Neck and head of a classifier, once for each setting."""

import copy
from collections.abc import Callable, Iterator, Mapping

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

from ..models import BNNeck, LinearHead
from ..models.checks import check_width
from .parts import necks_of, norm_of, of_setting

#: Heads whose logits are those of their layer ``fc``.
_LINEAR = (LinearHead, LinearClsHead, MultiLabelLinearClsHead)

#: Losses whose mean is a sum over rows, divided by ``avg_factor``.
_BY_ROW = (CrossEntropyLoss, LabelSmoothLoss)


class Candidates:
    """Neck and head, once for each setting, all on the same features.

    Batch normalisation and a linear layer, which is the usual case, are one
    product: of fixed features no gradient is asked for, so that with its
    scale and shift folded into the weights behind it batch normalisation has
    no backward pass left. A parameter of all settings is one tensor then, a
    part of which is that of each model. Other necks and heads run one after
    another.

    Args:
        model: Of :func:`probe_model`; trained itself if there is one setting.
        count: Number G of settings.

    Attributes:
        models (list[nn.Module]): They start alike.
        linear (bool): Whether all there is, is one product.
        plain (bool): Whether predictions are the softmax of the logits.
        stacks (list): If linear, each parameter that is trained, of all
            settings as ``(G, ...)``, and that of each, which is a part of
            it, as is its gradient.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self.models = [model] if count == 1 else [
            copy.deepcopy(model) for _ in range(count)]
        self.linear = _is_linear(model)
        self.plain = (_stock(model, ImageClassifier, 'predict')
                      and _stock(model.head, ClsHead, 'predict',
                                 '_get_predictions'))
        self._one_hot = (model.one_hot
                         or isinstance(model.head, MultiLabelClsHead))
        self.stacks: list[tuple[torch.Tensor, list[nn.Parameter]]] = []
        if self.linear:
            self._weight, self._bias = self._stacked(
                [one.head.fc for one in self.models])
            self._necks = [m for one in self.models for m in one.modules()
                           if isinstance(m, BNNeck)]
            norms = [neck.bn for neck in self._necks]
            self._scale, self._shift = self._stacked(norms)
            for norm in norms[1:]:  # statistics of the same features
                norm._buffers = norms[0]._buffers
            if not self.stacks:
                raise ValueError('without its BNNeck nothing of this model '
                                 'is left to train: leave norm=False out.')
            self._gradients = self._in_one_tensor()

    def _stacked(self, layers: list[nn.Module]
                 ) -> tuple[torch.Tensor | None, ...]:
        """Weight and bias of all layers, as tensors ``(G, ...)``."""
        found = []
        for name in ('weight', 'bias'):
            parts = [getattr(layer, name) for layer in layers]
            if not parts or parts[0] is None:
                found.append(None)
                continue
            whole = torch.stack([part.detach() for part in parts])
            found.append(whole)
            for part, data in zip(parts, whole.unbind(), strict=True):
                part.data = data
            if parts[0].requires_grad:
                self.stacks.append((whole.requires_grad_(), parts))
        return tuple(found)

    def _in_one_tensor(self) -> torch.Tensor:
        """Gradients of all stacks: what is done to one, takes one call."""
        wholes = [whole for whole, _ in self.stacks]
        flat = torch.cat([torch.zeros_like(x).flatten() for x in wholes])
        for (whole, parts), grad in zip(
                self.stacks, flat.split([x.numel() for x in wholes]),
                strict=True):
            whole.grad = grad.view_as(whole)
            for part, own in zip(parts, whole.grad, strict=True):
                part.grad = own
        return flat

    def train(self, mode: bool = True) -> None:
        """Set the mode of all of them."""
        for model in self.models:
            model.train(mode)

    def zero_grad(self) -> None:
        """Forget all gradients; those of one tensor stay its parts."""
        if self.linear:
            self._gradients.zero_()
            return
        for model in self.models:
            model.zero_grad()

    def clip(self, function: Callable, options: dict) -> None:
        """Clip the gradients of each setting on its own.

        Args:
            function: Of torch; MMEngine chooses it.
            options: Its arguments.
        """
        if self.linear and options.keys() == {'max_norm'}:
            norm = torch.linalg.vector_norm  # Tensor.norm takes longer
            if len(self.models) == 1:
                share = options['max_norm'] / (norm(self._gradients) + 1e-6)
                self._gradients.mul_(share.clamp(max=1))
                return
            parts = [whole.grad.flatten(1) for whole, _ in self.stacks]
            norms = norm(torch.stack([norm(part, dim=1) for part in parts]),
                         dim=0)
            share = options['max_norm'] / (norms + 1e-6)
            for part in parts:
                part.mul_(share.clamp(max=1)[:, None])
            return
        for model in self.models:
            function([p for p in model.parameters() if p.grad is not None],
                     **options)

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
        if type(module) in _BY_ROW and module.reduction == 'mean':
            rows = logits.flatten(0, 1)
            if count > 1:
                labels = labels.repeat_interleave(count, 0)
            if _is_plain(module):  # what is around it takes as long again
                share = count * module.loss_weight
                loss = functional.cross_entropy(rows, labels)
                return dict(loss=loss if share == 1 else loss * share)
            return dict(loss=module(rows, labels, avg_factor=len(x)))
        return dict(loss=sum(
            model.head.loss_module(one, labels, avg_factor=len(x)).mean() for
            model, one in zip(self.models, logits.unbind(1), strict=True)))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, G, K)``."""
        if not self.linear:
            return torch.stack([model.head(model.extract_feat(x))
                                for model in self.models], 1)
        weight, bias = self._weight, self._bias
        if self._necks:
            self._necks[0].check(x)
            norm = self._necks[0].bn
            if norm.training:
                norm.num_batches_tracked += 1
            x = functional.batch_norm(
                x, norm.running_mean, norm.running_var,
                training=norm.training, momentum=norm.momentum, eps=norm.eps)
            if norm.affine:
                shift = (weight @ self._shift[:, :, None]).squeeze(2)
                bias = shift if bias is None else bias + shift
                weight = weight * self._scale[:, None]
        else:
            check_width(self.models[0].head, x, weight.shape[2])
        return functional.linear(
            x, weight.flatten(0, 1), None if bias is None else bias.flatten()
        ).unflatten(1, (len(self.models), -1))

    def predict(self, x: torch.Tensor,
                labels: torch.Tensor) -> list[list[DataSample]]:
        """Predictions of each setting, by the classifiers' own means."""
        return [model.predict(x, _samples(labels)) for model in self.models]

    def diverged(self) -> list[bool]:
        """Whether each has a weight that is not finite."""
        return [not all(p.isfinite().all() for p in model.parameters())
                for model in self.models]


def candidates(short: nn.Module, settings: Mapping[str, dict]
               ) -> Iterator[tuple[Candidates, dict[str, dict]]]:
    """Copies to train, with and without normalisation, and their settings."""
    for norm in (True, False):
        part = {name: setting for name, setting in settings.items()
                if setting.get('norm', True) is norm}
        if part:
            yield Candidates(of_setting(
                copy.deepcopy(short), dict(norm=norm)), len(part)), part


def _samples(labels: torch.Tensor) -> list[DataSample]:
    """Labels as data samples: class indices, or the scores of each row."""
    if labels.is_floating_point():
        return [DataSample().set_gt_score(row) for row in labels]
    return [DataSample().set_gt_label(row) for row in labels[:, None]]


def _stock(part: nn.Module, kind: type, *names: str) -> bool:
    """Whether methods of a part are those of a class of MMPretrain."""
    return all(getattr(type(part), name, None) is getattr(kind, name)
               for name in names)


def _is_plain(loss: nn.Module) -> bool:
    """Whether a loss is torch's cross entropy and no more."""
    return (type(loss) is CrossEntropyLoss and loss.class_weight is None
            and not (loss.use_sigmoid or loss.use_soft))


def _is_linear(model: nn.Module) -> bool:
    """Whether all there is, is one batch normalisation and a linear layer."""
    necks, norm = necks_of(model), norm_of(model)
    dropout = getattr(model.head, 'dropout', None)
    return (_stock(model, ImageClassifier, 'loss', 'predict', 'extract_feat')
            and type(model.head) in _LINEAR
            and not getattr(model.head, 'cal_acc', False)
            and not (dropout is not None and dropout.p)
            and not list(model.head.loss_module.parameters())
            and (not necks or norm is not None and len(necks) == 1
                 and norm[1].bn.momentum is not None))
