"""Several settings of the optimiser, trained at once on the same features."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmpretrain.models.heads import LinearClsHead, MultiLabelLinearClsHead
from torch import nn
from torch.nn import functional

from ..models import BNNeck, LinearHead

#: Heads whose logits are those of their layer ``fc``.
_LINEAR = (LinearHead, LinearClsHead, MultiLabelLinearClsHead)


def grid(cfg: Config, rates: Sequence[float] | None,
         decays: Sequence[float] | None) -> dict[str, dict[str, float]]:
    """All pairs of learning rates and weight decays.

    Args:
        cfg: The config, whose value stands for a list that is None.
        rates: Learning rates, positive.
        decays: Weight decays, 0 or more.

    Returns:
        Name -> ``lr`` and ``weight_decay``.

    Raises:
        ValueError: If a value is out of its range, or given twice.
    """
    own = cfg.optim_wrapper.optimizer
    rates = rates or [own.lr]
    decays = decays if decays else [own.get('weight_decay', 0.)]
    for name, values, fits in (
            ('learning rate', rates, lambda v: v > 0),
            ('weight decay', decays, lambda v: v >= 0)):
        for value in values:
            if not (fits(value) and value < float('inf')):
                raise ValueError(f'{value} is no {name}: learning rates are '
                                 'above 0, weight decays 0 at least.')
    names = {f'lr={rate:g},weight_decay={decay:g}': dict(
        lr=rate, weight_decay=decay)
        for rate, decay in itertools.product(rates, decays)}
    if len(names) < len(rates) * len(decays):
        raise ValueError('a learning rate or a weight decay is given twice: '
                         f'{list(rates)}, {list(decays)}.')
    return names


class Candidates(BaseModel):
    """Copies of a neck and a head that start alike, each trained by itself.

    Batch normalisation and a linear layer, which is the usual case, become
    one product: features are normalised once, each copy's scale and shift
    join its weights, and the weights of all stand side by side. Other necks
    and heads run one after another, on the same batches.

    Args:
        model: The classifier on stored features, see
            :func:`~gap_plugin.probing.probe_model`.
        names: Of the copies.

    Attributes:
        fused (bool): Whether it is one product.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.data_preprocessor = model.data_preprocessor
        self.names = list(names)
        self.members = nn.ModuleList(copy.deepcopy(model) for _ in names)
        self.fused = _is_linear(model)
        self._norms = [m for m in self.members.modules()
                       if isinstance(m, nn.BatchNorm1d)]
        if self.fused:  # statistics of the same features: shared
            for norm in self._norms[1:]:
                norm._buffers = self._norms[0]._buffers

    def optim_wrappers(self, cfg: dict,
                       settings: Sequence[dict]) -> OptimWrapperDict:
        """An optimiser of the config for each copy.

        Args:
            cfg: ``optim_wrapper`` of the config.
            settings: What of its ``optimizer`` is another one, per copy.
        """
        made = {}
        for name, member, setting in zip(self.names, self.members, settings,
                                         strict=True):
            own = copy.deepcopy(cfg)
            own['optimizer'].update(setting)
            made[name] = build_optim_wrapper(member, own)
        return OptimWrapperDict(**made)

    def _logits(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of every copy, by one product."""
        layers = [member.head.fc for member in self.members]
        weights = torch.stack([layer.weight for layer in layers])
        biases = torch.stack([
            layer.weight.new_zeros(len(layer.weight))
            if layer.bias is None else layer.bias for layer in layers])
        if self._norms:
            norm = self._norms[0]
            if norm.training and norm.track_running_stats:
                norm.num_batches_tracked += 1
            x = functional.batch_norm(
                x, norm.running_mean, norm.running_var,
                training=norm.training, momentum=norm.momentum, eps=norm.eps)
            if norm.affine:
                shift = torch.stack([n.bias for n in self._norms])
                scale = torch.stack([n.weight for n in self._norms])
                biases = biases + (weights @ shift[..., None])[..., 0]
                weights = weights * scale[:, None]
        flat = functional.linear(x, weights.flatten(0, 1), biases.flatten())
        return flat.unflatten(1, biases.shape).unbind(1)

    def _each(self, data: dict) -> list[tuple[Callable, Any]]:
        """Head and its input, for every copy."""
        if self.fused:
            every = self._logits(data['inputs'])
            return [(_behind(member.head), logits) for member, logits in
                    zip(self.members, every, strict=True)]
        return [(member.head, member.extract_feat(data['inputs']))
                for member in self.members]

    def train_step(self, data: dict,
                   optim_wrapper: OptimWrapperDict) -> dict:
        """One step of every copy."""
        wrappers = list(optim_wrapper.values())
        with wrappers[0].optim_context(self):
            data = self.data_preprocessor(data, True)
            each = self._each(data)
            # cut: the losses end at the logits, and one pass goes further
            ends = [x.detach().requires_grad_() if self.fused else x
                    for _, x in each]
            losses = [
                self.parse_losses(head.loss(end, data['data_samples']))
                for (head, _), end in zip(each, ends, strict=True)]
        for wrapper, (loss, _) in zip(wrappers, losses, strict=True):
            wrapper.backward(wrapper.scale_loss(loss))
        if self.fused:
            torch.autograd.backward([x for _, x in each],
                                    [end.grad for end in ends])
        for wrapper in wrappers:
            if wrapper.should_update():
                wrapper.step()
                wrapper.zero_grad()
        return {key: torch.stack([torch.as_tensor(one[key]).detach()
                                  for _, one in losses]).nanmean()
                for key in losses[0][1]}

    def val_step(self, data: dict) -> list[list[dict]]:
        """Predictions of every copy, as dicts."""
        data = self.data_preprocessor(data, False)
        # as dicts, since the next copy writes into the same samples
        return [[sample.to_dict() for sample in
                 head.predict(x, data['data_samples'])]
                for head, x in self._each(data)]

    test_step = val_step

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Unused: steps are taken by :meth:`train_step`."""
        raise NotImplementedError

    def diverged(self, index: int) -> bool:
        """Whether a copy has a weight that is not finite."""
        return not all(p.isfinite().all()
                       for p in self.members[index].parameters())


class EachCandidate(Evaluator):
    """Evaluates every copy on its own.

    Metrics are named ``<copy>/<metric>``; those of a copy that has diverged
    are NaN.

    Args:
        metrics: The evaluator of the config.
        model: Whose copies they are.
    """

    def __init__(self, metrics: Any, model: Candidates) -> None:
        super().__init__([])
        self.model = model
        self.each = [Evaluator(copy.deepcopy(metrics)) for _ in model.names]

    @property
    def dataset_meta(self) -> dict | None:
        """Of the dataset."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        self._dataset_meta = dataset_meta
        for evaluator in self.each:
            evaluator.dataset_meta = dataset_meta

    def process(self, data_samples: list[list[dict]],
                data_batch: Any = None) -> None:
        """Take the predictions of a batch."""
        for evaluator, samples in zip(self.each, data_samples, strict=True):
            evaluator.process(samples, data_batch)

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of all copies."""
        found = {}
        for index, name in enumerate(self.model.names):
            diverged = self.model.diverged(index)
            for key, value in self.each[index].evaluate(size).items():
                found[f'{name}/{key}'] = float('nan') if diverged else value
        return found


def _is_linear(model: nn.Module) -> bool:
    """Whether all there is, is one batch normalisation and a linear layer."""
    neck = getattr(model, 'neck', None)
    parts = list(neck) if isinstance(neck, nn.Sequential) else [neck]
    parts = [p for p in parts
             if p is not None and not isinstance(p, nn.Identity)]
    norms = [p for p in parts if type(p) is BNNeck
             and type(p.bn) is nn.BatchNorm1d]
    dropout = getattr(model.head, 'dropout', None)
    return (type(model.head) in _LINEAR and len(parts) == len(norms) < 2
            and not (dropout is not None and dropout.p))


def _behind(head: nn.Module) -> nn.Module:
    """The head, for logits: losses and predictions as its own."""
    head = copy.copy(head)
    head.forward = lambda logits: logits
    return head
