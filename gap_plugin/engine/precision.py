"""Mixed precision on GPUs and on CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` that trains under bfloat16 autocast.

    On CPUs, too, which ``AmpOptimWrapper`` refuses. bfloat16 has the range of
    float32: losses are not scaled. Takes the arguments of MMEngine's
    ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run a forward under autocast, and hold gradients back as usual."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
