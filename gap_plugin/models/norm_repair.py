"""What MMEngine's and MMCV's converters do to the norms of a timm network.

timm's ``BatchNormAct2d`` is a ``BatchNorm2d`` that holds the activation behind
it. MMEngine's ``sync_bn`` and MMCV's ``fuse_conv_bn`` replace it as if it held
none (timm issue 1254).
"""

from collections.abc import Collection

import torch
from timm.layers import (
    BatchNormAct2d,
    Conv2dSame,
    FrozenBatchNormAct2d,
    SyncBatchNormAct,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Fused(nn.Module):
    """What is left of a norm whose scale and shift a convolution took."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.drop = getattr(norm, 'drop', nn.Identity())
        self.act = getattr(norm, 'act', nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(x))


#: convolutions that use their weights as they are
_PLAIN = (nn.Conv2d, Conv2dSame)

#: converted norms that run their activation
_WHOLE = (_Fused, BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct)


class NormConversions:
    """Remembers the norms of a network, and gives back what they lose.

    Args:
        model: The network, ahead of any conversion.
        model_name: For messages.
        pairs: A convolution and the norm that alone takes its output, by
            their names.
    """

    def __init__(self, model: nn.Module, model_name: str,
                 pairs: Collection[tuple[str, str]]) -> None:
        self._model_name = model_name
        # where it stands, the norm, whether MMCV fuses it with its own layer
        self._norms: list[tuple[nn.Module, str, nn.Module, bool]] = []
        for at, owner in model.named_modules():
            # MMCV goes by the order in which layers were registered, which
            # not every network runs them in
            conv = None
            for name, child in owner.named_children():
                full = f'{at}.{name}' if at else name
                if isinstance(child, _BatchNorm):
                    self._norms.append((owner, name, child, conv is None or (
                        conv, full) in pairs))
                    conv = None
                elif isinstance(child, nn.Conv2d):
                    conv = full if type(child) in _PLAIN else ''

    def mend(self) -> None:
        """Put lost activations back, in place.

        Raises:
            ValueError: If an unknown conversion has taken an activation away,
                or a norm has been fused into another layer than its own.
        """
        for owner, name, norm, fuses in self._norms:
            now = owner._modules.get(name)
            if now is norm:
                continue
            if isinstance(now, nn.Identity):
                if not fuses:
                    raise ValueError(
                        f"{self._model_name!r} does not survive MMCV's "
                        'fuse_conv_bn, which fuses norms with the wrong '
                        'layers there: leave fuse_conv_bn out.')
                owner._modules[name] = _Fused(norm)
            elif _holds_act(norm) and not isinstance(now, _WHOLE):
                _give_back(owner, name, norm, now)


def _holds_act(norm: nn.Module) -> bool:
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
