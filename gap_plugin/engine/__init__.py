"""What training runs on: hooks, safe loading, precision, shards."""

from .binding_hook import BindPipelineHook
from .checked_loading import check_host_loads
from .checkpoint_hook import AtomicCheckpointHook
from .finetuning import FinetuneOptimWrapperConstructor
from .precision import Bfloat16OptimWrapper
from .safe_loading import allow_classes, allow_host_checkpoints
from .sharding import timm_auto_wrap_policy

__all__ = [
    'AtomicCheckpointHook', 'Bfloat16OptimWrapper', 'BindPipelineHook',
    'FinetuneOptimWrapperConstructor', 'allow_classes',
    'allow_host_checkpoints', 'check_host_loads', 'timm_auto_wrap_policy'
]
