"""The accelerator that MMEngine runs on, of whatever kind."""

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
from mmengine.device import get_device


def device_name() -> str:
    """What speed depends on: the name of a GPU, or the threads of a CPU."""
    kind = get_device()
    if kind == 'cuda':
        return torch.cuda.get_device_name()
    return f'{torch.get_num_threads()} CPU threads' if kind == 'cpu' else kind


def half_precision() -> str | None:
    """What this machine has for numbers of 16 bits, in words.

    Without it they save memory alone, and on a CPU no time but cost some.

    Returns:
        None if there is nothing, or training does not run on it.
    """
    kind = get_device()
    if kind == 'cuda':  # tensor cores, from Volta on
        return ('this GPU has units for float16'
                if torch.cuda.get_device_capability() >= (7, 0) else None)
    if kind != 'cpu':
        return None
    if platform.machine().lower() in ('aarch64', 'arm64'):
        has = (torch.backends.mkldnn.is_available()
               and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:  # the check of mkldnn is content with AVX-512, which imitates it
        has = getattr(torch.cpu, '_is_avx512_bf16_supported', bool)()
    return 'this CPU has units for bfloat16' if has else None


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
