"""What is trained: neck and head of a classifier, once for each setting."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
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
    short = _without(model, FixedPart(model).necks)
    short.backbone = _Stored(in_tuple)
    short.data_preprocessor = nn.Identity()
    short.one_hot = getattr(model.data_preprocessor, 'to_onehot', False)
    if not any(p.requires_grad for p in short.parameters()):
        raise ValueError('neither neck nor head of the config has a '
                         'parameter that is trained: give it a head, such '
                         'as LinearHead.')
    return short


def _without(model: nn.Module, necks: list[str]) -> nn.Module:
    """The same, but for some necks; all parts stay those of the model."""
    found = copy.copy(model)
    found._modules = dict(model._modules)
    if necks == ['neck']:
        found.neck = nn.Identity()
    elif necks:
        found.neck = nn.Sequential(OrderedDict(
            (name, nn.Identity() if f'neck.{name}' in necks else part)
            for name, part in model.neck.named_children()))
    return found


def _necks(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> each part of the neck that does something."""
    neck = getattr(model, 'neck', None)
    parts = ({f'neck.{name}': part for name, part in neck.named_children()}
             if isinstance(neck, nn.Sequential) else {'neck': neck})
    return {name: part for name, part in parts.items()
            if not isinstance(part, (nn.Identity, type(None)))}


def norm_of(model: nn.Module) -> tuple[str, BNNeck] | None:
    """Name and module of the one ``BNNeck`` that can be left out, if any."""
    found = [(name, part) for name, part in _necks(model).items()
             if type(part) is BNNeck and type(part.bn) is nn.BatchNorm1d]
    return found[0] if len(found) == 1 else None


def of_setting(short: nn.Module, setting: Mapping) -> nn.Module:
    """What is trained with a setting: without its ``BNNeck`` if it says so.

    That of the model then gives what it is given, so that the model is what
    is trained, whatever it is built from.

    Raises:
        ValueError: If there is none to leave out.
    """
    if setting.get('norm', True):
        return short
    norm = norm_of(short)
    if norm is None:
        raise ValueError('norm=False leaves the BNNeck of the neck out, but '
                         'the neck has none, or several.')
    name, neck = norm
    neck.bn.reset_parameters()  # scale 1, shift 0, mean 0
    neck.bn.running_var.fill_(1 - neck.bn.eps)
    return _without(short, [name])


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
        self._stacks: list[torch.Tensor] = []
        if self.linear:
            self._weight, self._bias = self._stacked(
                [one.head.fc for one in self.models])
            self._necks = [m for one in self.models for m in one.modules()
                           if isinstance(m, BNNeck)]
            norms = [neck.bn for neck in self._necks]
            self._scale, self._shift = self._stacked(norms)
            for norm in norms[1:]:  # statistics of the same features
                norm._buffers = norms[0]._buffers

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
                self._stacks.append(whole.requires_grad_())
                whole.grad = torch.zeros_like(whole)
                for part, grad in zip(parts, whole.grad, strict=True):
                    part.grad = grad
        return tuple(found)

    def train(self, mode: bool = True) -> None:
        """Set the mode of all of them."""
        for model in self.models:
            model.train(mode)

    def zero_grad(self) -> None:
        """Forget all gradients; those of one tensor stay its parts."""
        for stack in self._stacks:
            stack.grad.zero_()
        if not self.linear:
            for model in self.models:
                model.zero_grad()

    def clip(self, function: Callable, options: dict) -> None:
        """Clip the gradients of each setting on its own.

        Args:
            function: Of torch; MMEngine chooses it.
            options: Its arguments.
        """
        if self.linear and options.keys() == {'max_norm'}:
            # the same for all at once, of no use to one alone
            parts = [stack.grad.flatten(1) for stack in self._stacks]
            norms = torch.stack([part.norm(dim=1) for part in parts]).norm(
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
    necks = _necks(model)
    dropout = getattr(model.head, 'dropout', None)
    return (_stock(model, ImageClassifier, 'loss', 'predict', 'extract_feat')
            and type(model.head) in _LINEAR
            and not getattr(model.head, 'cal_acc', False)
            and not (dropout is not None and dropout.p)
            and (not necks or len(necks) == 1 and norm_of(model) is not None
                 and norm_of(model)[1].bn.momentum is not None))
