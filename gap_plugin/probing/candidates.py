"""Several settings of the optimiser, trained at once on the same features."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from torch import nn

from .evaluation import build_evaluator, of_whole_batch, whole_predictions
from .fused import FusedClassifiers, head_on_logits


def grid(rates: Sequence[float] | None,
         decays: Sequence[float] | None) -> dict[str, dict[str, float]]:
    """All pairs of learning rates and weight decays.

    Args:
        rates: Learning rates, positive; None for that of the config.
        decays: Weight decays, 0 or more; None for that of the config.

    Returns:
        Name -> ``lr`` and ``weight_decay``, as far as given.

    Raises:
        ValueError: If a value is out of its range, or given twice.
    """
    lists = {key: values for key, values in
             dict(lr=rates, weight_decay=decays).items() if values}
    for key, values in lists.items():
        for value in values:
            if not (value > 0 or key == 'weight_decay' and value == 0) or (
                    value == float('inf')):
                told = dict(lr='learning rate', weight_decay='weight decay')
                raise ValueError(f'{value} is no {told[key]}: learning rates '
                                 'are above 0, weight decays 0 at least.')
    if not lists:
        return {}
    found = [dict(zip(lists, values, strict=True))
             for values in itertools.product(*lists.values())]
    names = {','.join(f'{key}={value:g}' for key, value in one.items()): one
             for one in found}
    if len(names) < len(found):
        raise ValueError('a learning rate or a weight decay is given twice: '
                         f'{lists}.')
    return names


class Candidates(BaseModel):
    """Copies of a neck and a head that start alike, each trained by itself.

    Batch normalisation and a linear layer, which is the usual case, become
    one product, see :mod:`.fused`. Other necks and heads run one after
    another, on the same batches.

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
        self.fused = model.product is not None
        self._product = FusedClassifiers(self.members) if self.fused else None

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

    def train_step(self, data: dict,
                   optim_wrapper: OptimWrapperDict) -> dict:
        """One step of every copy."""
        wrappers = list(optim_wrapper.values())
        with wrappers[0].optim_context(self):
            data = self.data_preprocessor(data, True)
            inputs, samples = data['inputs'], data['data_samples']
            logits, ends = (), ()
            if self.fused:
                # cut: the losses end at the logits, one pass goes further
                logits = self._product(inputs)
                ends = [x.detach().requires_grad_() for x in logits]
                found = [head_on_logits(member.head).loss(end, samples) for
                         member, end in zip(self.members, ends, strict=True)]
            else:
                found = [member.loss(inputs, samples)
                         for member in self.members]
            losses = [self.parse_losses(one) for one in found]
        for wrapper, (loss, _) in zip(wrappers, losses, strict=True):
            wrapper.backward(wrapper.scale_loss(loss))
        if self.fused:
            torch.autograd.backward(logits, [end.grad for end in ends])
        for wrapper in wrappers:
            if wrapper.should_update():
                wrapper.step()
                wrapper.zero_grad()
        return {key: torch.stack([torch.as_tensor(one[key]).detach()
                                  for _, one in losses]).nanmean()
                for key in losses[0][1]}

    def val_step(self, data: dict) -> list[list[dict]]:
        """Predictions of every copy."""
        data = self.data_preprocessor(data, False)
        samples = data['data_samples']
        if self.fused and of_whole_batch(samples):
            return [whole_predictions(logits, samples)
                    for logits in self._product(data['inputs'])]
        return [member.val_step(data) for member in self.members]

    test_step = val_step

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Unused: steps are taken by :meth:`train_step`."""
        raise NotImplementedError

    def diverged(self, index: int) -> bool:
        """Whether a copy has a weight that is not finite."""
        return not all(p.isfinite().all()
                       for p in self.members[index].parameters())


class PerCandidateEvaluator(Evaluator):
    """Evaluates every copy on its own.

    Metrics are named ``<copy>/<metric>``; those of a copy that has diverged
    are NaN.

    Args:
        metrics: The evaluator of the config.
        model: Whose copies they are.
        labels: What they are held against: ``(N, )`` or scores ``(N, K)``.
    """

    def __init__(self, metrics: Any, model: Candidates,
                 labels: np.ndarray) -> None:
        super().__init__([])
        self.model = model
        self.each = [build_evaluator(metrics, member, labels)
                     for member in model.members]

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
