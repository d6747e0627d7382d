"""Which parts of a timm network are sharded on their own."""

from mmengine.registry import FUNCTIONS
from torch import nn

from ..models import TimmFeatureBackbone


@FUNCTIONS.register_module()
def timm_auto_wrap_policy(module: nn.Module,
                          recurse: bool,
                          nonwrapped_numel: int,
                          min_num_params: int = 100_000) -> bool:
    """Wrap parts of a network, for ``MMFullyShardedDataParallel``.

    Parameters are gathered when the ``forward`` of a wrapped module is
    called. timm calls other methods of a network, walks through its
    containers and takes weights out of single layers: neither of these may be
    wrapped. Not for networks that use a module in several places (CoaT).

    Args:
        module: What may be wrapped.
        recurse: Whether the question is to look inside.
        nonwrapped_numel: Its parameters that no part of it has wrapped.
        min_num_params: How many make a part.
    """
    if recurse:
        return True
    container = isinstance(
        module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    network = isinstance(module, TimmFeatureBackbone) or hasattr(
        module, 'forward_features')
    layer = next(module.children(), None) is None
    return nonwrapped_numel >= min_num_params and not (
        container or network or layer)
