"""The accelerator that MMEngine runs on, of whatever kind."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

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

    Raises:
        ValueError: If this torch has none for it.
    """
    if not amp:
        return nullcontext()
    if not torch.amp.is_autocast_available(device.type):
        raise ValueError(f'torch {torch.__version__} has no mixed precision '
                         f'for the device {device.type!r}: leave amp out.')
    return torch.autocast(device.type)


def random_states() -> dict[str, Any]:
    """States of the random numbers of the CPU and of the accelerator."""
    states = dict(cpu=torch.get_rng_state(),
                  cuda=torch.cuda.get_rng_state_all())
    kind = get_device()
    if kind not in states:
        states[kind] = getattr(torch, kind).get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Go on with random numbers where :func:`random_states` was called."""
    torch.set_rng_state(states['cpu'].cpu())
    if states['cuda']:
        torch.cuda.set_rng_state_all([s.cpu() for s in states['cuda']])
    kind = get_device()
    if kind in states and kind not in ('cpu', 'cuda'):
        getattr(torch, kind).set_rng_state(states[kind].cpu())
