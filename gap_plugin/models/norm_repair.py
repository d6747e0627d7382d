"""What MMEngine's and MMCV's converters do to the norms of a timm network.

timm's ``BatchNormAct2d`` is a ``BatchNorm2d`` that holds the activation behind
it. MMEngine's ``sync_bn`` and MMCV's ``fuse_conv_bn`` replace it as if it held
none (timm issue 1254).
"""

import torch
from mmcv.cnn import fuse_conv_bn
from timm.layers import (
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    SyncBatchNormAct,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Fused(nn.Module):
    """What is left of a norm whose scale and shift a convolution took."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.drop = getattr(norm, 'drop', nn.Identity())
        self.act = getattr(norm, 'act', nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(x))


#: converted norms that run their activation
_WHOLE = (_Fused, BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct)


class NormConversions:
    """Remembers the norms of a network, and gives back what they lose.

    Args:
        model: The network, ahead of any conversion.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [(owner, name, norm) for owner in model.modules()
                       for name, norm in owner.named_children()
                       if isinstance(norm, nn.BatchNorm2d)]

    def mend(self) -> bool:
        """Put lost activations back, in place.

        Returns:
            Whether norms have been fused into convolutions.

        Raises:
            ValueError: If an unknown conversion has taken an activation away.
        """
        fused = False
        for owner, name, norm in self._norms:
            now = owner._modules.get(name)
            if now is norm:
                continue
            fused |= isinstance(now, nn.Identity | _Fused)
            if isinstance(now, nn.Identity):
                owner._modules[name] = _Fused(norm)
            elif _holds_act(norm) and not isinstance(now, _WHOLE):
                _give_back(owner, name, norm, now)
        return fused


def _holds_act(norm: nn.BatchNorm2d) -> bool:
    return isinstance(norm, BatchNormAct2d) and not isinstance(
        norm.act, nn.Identity)


def _give_back(owner: nn.Module, name: str, norm: BatchNormAct2d,
               now: nn.Module) -> None:
    """Put the activation of one norm back."""
    if type(now) is nn.SyncBatchNorm:
        # drop and act are among its children still: timm's class runs them
        now.__class__ = SyncBatchNormAct
    elif isinstance(now, _BatchNorm):  # MMEngine's way back from SyncBN
        norm.weight, norm.bias = now.weight, now.bias
        for statistic, value in now.named_buffers(recurse=False):
            setattr(norm, statistic, value)
        owner._modules[name] = norm.train(now.training)
    elif all(child is not norm for child in now.children()):  # no wrapper
        raise ValueError(
            f'{type(now).__name__} has replaced {name!r}, a norm of timm that '
            'holds an activation, which is lost: leave that conversion out; '
            "sync_bn='torch' keeps it.")


def fuses_rightly(backbone: nn.Module) -> bool:
    """Whether MMCV's ``fuse_conv_bn`` keeps what a backbone computes.

    It goes by the order in which layers are registered, which not every
    network runs them in.

    Args:
        backbone: One of the same kind, which is spoilt; with any weights.
    """
    generator = torch.Generator().manual_seed(0)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):  # as different as after training
            for value, low, high in ((norm.running_mean, -.5, .5),
                                     (norm.running_var, .5, 2.),
                                     (norm.weight, .5, 1.5),
                                     (norm.bias, -.5, .5)):
                if value is not None:
                    value.data.uniform_(low, high, generator=generator)
    # in float64, where only a wrong fusion changes a digit that is seen
    backbone.eval().double()
    image = torch.randn(1, backbone.in_channels, *backbone.image_size,
                        generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before = backbone(image)
        fuse_conv_bn(backbone.timm_model)
        backbone._fuses = True  # which is to be seen
        after = backbone(image)
    return all(
        torch.allclose(a, b, rtol=0, atol=1e-6 * float(b.abs().max()))
        for a, b in zip(after, before, strict=True))
