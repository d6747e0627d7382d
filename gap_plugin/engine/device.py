"""The accelerator that MMEngine runs on, of whatever kind."""

from contextlib import AbstractContextManager, nullcontext

import torch
from mmengine.device import get_device


def device_name() -> str:
    """What speed depends on: the name of a GPU, or the threads of a CPU."""
    kind = get_device()
    if kind == 'cuda':
        return torch.cuda.get_device_name()
    return f'{torch.get_num_threads()} CPU threads' if kind == 'cpu' else kind


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was told."""
    getattr(torch, device.type).synchronize()


def autocast(device: torch.device, amp: bool) -> AbstractContextManager:
    """Mixed precision on a device, or none.

    It is bfloat16 on CPUs and on GPUs that compute in it, which takes any
    feature that float32 takes; else float16.

    Raises:
        ValueError: If this torch has none for it.
    """
    if not amp:
        return nullcontext()
    if not torch.amp.is_autocast_available(device.type):
        raise ValueError(f'torch {torch.__version__} has no mixed precision '
                         f'for the device {device.type!r}: leave amp out.')
    dtype = None  # the device's own
    if device.type == 'cuda' and torch.cuda.is_bf16_supported(
            including_emulation=False):
        dtype = torch.bfloat16
    return torch.autocast(device.type, dtype)
