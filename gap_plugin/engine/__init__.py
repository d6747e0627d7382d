"""What training runs on: mixed precision, checkpoints that outlive a kill."""

from .checkpoint import AtomicCheckpointHook
from .precision import Bfloat16OptimWrapper

__all__ = ['AtomicCheckpointHook', 'Bfloat16OptimWrapper']
