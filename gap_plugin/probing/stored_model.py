"""The classifier as a probe sees it: stored features, then neck and head."""

import copy
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmpretrain.structures import DataSample
from torch import nn

from ..features.fixed_part import FixedPart
from .evaluation import of_whole_batch, whole_predictions
from .fused import FusedClassifiers, head_on_logits, is_linear


class _Stored(nn.Module):
    """Stands where the backbone stood: features come as they are."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, x: torch.Tensor) -> Any:
        return (x, ) if self.in_tuple else x


class _Move(BaseDataPreprocessor):
    """Moves a batch to the model's device, and no more."""

    def forward(self, data: dict, training: bool = False) -> dict:
        # a walk through the samples costs as much as a small product
        return data if self.device.type == 'cpu' else self.cast_data(data)


class _OnFeatures:
    """Mixed into the class of a classifier whose images are features."""

    def loss(self, inputs: torch.Tensor,
             data_samples: list[DataSample]) -> dict:
        """As the classifier's own, by one product where it can be."""
        if self.product is None:
            return super().loss(inputs, data_samples)
        (logits, ) = self.product(inputs)
        return head_on_logits(self.head).loss(logits, data_samples)

    def val_step(self, data: dict) -> list[dict]:
        """Predictions, in one dict for labels of a whole batch."""
        data = self.data_preprocessor(data, False)
        inputs, samples = data['inputs'], data['data_samples']
        if of_whole_batch(samples):
            logits = self.head(self.extract_feat(inputs))
            return whole_predictions(logits, samples)
        return [sample.to_dict() for sample in self.predict(inputs, samples)]

    test_step = val_step


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
    short.data_preprocessor = _Move().to(next(model.parameters()).device)
    if fixed.necks == ['neck']:
        short.neck = nn.Identity()
    elif fixed.necks:
        short.neck = nn.Sequential()
        for name, part in model.neck.named_children():
            short.neck.add_module(
                name,
                nn.Identity() if f'neck.{name}' in fixed.necks else part)
    short.product = FusedClassifiers([short]) if is_linear(short) else None
    short.__class__ = type('OnFeatures', (_OnFeatures, type(model)), {})
    if not any(p.requires_grad for p in short.parameters()):
        raise ValueError('neither neck nor head of the config has a '
                         'parameter that is trained: give it a head, such '
                         'as LinearHead.')
    return short
