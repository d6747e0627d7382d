"""What follows the device of MMEngine, on one that this machine lacks."""

from types import SimpleNamespace

import pytest
import torch

from gap_plugin.engine import device


@pytest.fixture
def mps(monkeypatch):
    """A Mac's GPU, as far as it is asked here."""
    waited = []
    monkeypatch.setattr(device, 'get_device', lambda: 'mps')
    monkeypatch.setattr(torch, 'mps', SimpleNamespace(
        synchronize=lambda: waited.append(True)))
    return waited


def test_timing_waits_for_the_gpu(mps):
    device.synchronize(torch.device('mps'))
    assert mps == [True] and device.device_name() == 'mps'
    device.synchronize(torch.device('cpu'))
    assert mps == [True]


def test_a_device_without_mixed_precision_is_named(monkeypatch):
    monkeypatch.setattr(torch.amp, 'is_autocast_available', lambda _: False)
    with pytest.raises(ValueError, match=r"no mixed precision for the device "
                       r"'cpu': leave amp out"):
        device.autocast(torch.device('cpu'), True)
    with device.autocast(torch.device('cpu'), False):
        assert not torch.is_autocast_enabled('cpu')
