"""What stands between the map and the head: pooling and normalisation."""

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import nn

from ..arguments import check_arguments
from .checks import check_width

Features = torch.Tensor | tuple[torch.Tensor, ...]


@MODELS.register_module()
class GAPNeck(nn.Module):
    """Global average pooling: the mean over all positions of a map.

    As everywhere in MMPretrain, a tuple gives a tuple, so that stock heads,
    which take the last entry, fit behind it; a tensor gives a tensor.
    """

    def forward(self, feats: Features) -> Features:
        """Pool.

        Args:
            feats: Map ``(N, C, h, w)`` or a tuple of them. ``(N, C)`` passes
                through.

        Returns:
            ``(N, C)``, or a tuple of them.

        Raises:
            ValueError: If an input is neither.
        """
        if isinstance(feats, (list, tuple)):
            return tuple(self.forward(x) for x in feats)
        if feats.ndim == 4:
            return feats.mean(dim=(2, 3))
        if feats.ndim != 2:
            raise ValueError(
                f'GAPNeck takes maps (N, C, h, w) or vectors (N, C), got '
                f'{tuple(feats.shape)}; TimmFeatureBackbone gives maps for '
                'every timm network.')
        return feats


@MODELS.register_module()
class BNNeck(BaseModule):
    """Batch normalisation of features, per channel.

    With ``freeze_bias`` it is the BNNeck of `Bag of Tricks and A Strong
    Baseline for Deep Person Re-identification
    <https://arxiv.org/abs/1903.07071>`_.

    Args:
        in_channels: Width C of the features.
        eps: Added to the variance.
        momentum: Share of a new batch in the running statistics; None for
            the mean of all batches.
        affine: Whether to learn a scale and a shift.
        freeze_bias: Whether the shift stays 0, so that the normalised
            features lie around the origin.
        init_cfg: Config of MMEngine's weight initialisation.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, or ``freeze_bias`` is set without
            ``affine``.
    """

    def __init__(self,
                 in_channels: int,
                 eps: float = 1e-5,
                 momentum: float | None = 0.1,
                 affine: bool = True,
                 freeze_bias: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        check_arguments(
            'BNNeck', count=dict(in_channels=in_channels),
            amount=dict(eps=eps), share_or_none=dict(momentum=momentum),
            flag=dict(affine=affine, freeze_bias=freeze_bias),
            configs_or_none=dict(init_cfg=init_cfg))
        if freeze_bias and not affine:
            raise ValueError('BNNeck has no bias to freeze with affine=False;'
                             ' use freeze_bias=False.')
        self.in_channels = in_channels
        self.bn = nn.BatchNorm1d(in_channels, eps, momentum, affine)
        if freeze_bias:
            self.bn.bias.requires_grad_(False)

    def forward(self, feats: Features) -> Features:
        """Normalise.

        Args:
            feats: ``(N, C)`` or ``(N, C, h, w)``, or a tuple, whose last
                entry is taken.

        Returns:
            The same shape; a tuple of one for a tuple.

        Raises:
            ValueError: If the width is another one, or a batch of one is
                trained on.
        """
        if isinstance(feats, (list, tuple)):
            return (self.forward(feats[-1]), )
        self.check(feats)
        # BatchNorm1d takes (N, C, L): one class for vectors and maps
        return self.bn(feats.flatten(2) if feats.ndim > 2 else feats
                       ).view(feats.shape)

    def check(self, feats: torch.Tensor) -> None:
        """Refuse what cannot be normalised, as :meth:`forward` does."""
        check_width(self, feats, self.in_channels)
        # SyncBatchNorm, which may stand here instead, counts all processes
        if (self.bn.training and isinstance(self.bn, nn.BatchNorm1d)
                and feats.shape[0] == 1 and feats[0, 0].numel() == 1):
            raise ValueError(
                'BNNeck cannot train on a batch of one, whose variance is 0: '
                'use batch_size >= 2, and drop_last=True in the dataloader '
                'if the last batch has one.')
