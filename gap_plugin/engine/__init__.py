"""What training runs on: precision, checkpoints, shards."""

from .checkpoint import AtomicCheckpointHook
from .precision import Bfloat16OptimWrapper
from .sharding import timm_auto_wrap_policy

__all__ = [
    'AtomicCheckpointHook', 'Bfloat16OptimWrapper', 'timm_auto_wrap_policy'
]
