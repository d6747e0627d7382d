"""What follows the device of MMEngine, on one that this machine lacks."""

from types import SimpleNamespace

import pytest
import torch

from gap_plugin.engine import device


@pytest.fixture
def mps(monkeypatch):
    """A Mac's GPU, as far as it is asked here."""
    waited, state = [], [torch.tensor([1], dtype=torch.uint8)]
    monkeypatch.setattr(device, 'get_device', lambda: 'mps')
    monkeypatch.setattr(torch, 'mps', SimpleNamespace(
        synchronize=lambda: waited.append(True),
        get_rng_state=lambda: state[0].clone(),
        set_rng_state=lambda new: state.__setitem__(0, new)))
    return SimpleNamespace(waited=waited, state=state)


def test_random_numbers_of_cpu_and_gpu_go_on(mps):
    states = device.random_states()
    expected = torch.rand(3)
    mps.state[0] = torch.tensor([7], dtype=torch.uint8)
    device.set_random_states(states)
    assert torch.equal(torch.rand(3), expected)
    assert mps.state[0].tolist() == [1]
    # a checkpoint of another machine
    device.set_random_states(dict(cpu=states['cpu'], cuda=[]))
    assert torch.equal(torch.rand(3), expected)


def test_timing_waits_for_the_gpu(mps):
    device.synchronize(torch.device('mps'))
    assert mps.waited == [True] and device.device_name() == 'mps'
    device.synchronize(torch.device('cpu'))
    assert mps.waited == [True]


def test_a_device_without_mixed_precision_is_named(monkeypatch):
    monkeypatch.setattr(torch.amp, 'is_autocast_available', lambda _: False)
    with pytest.raises(ValueError, match=r"no mixed precision for the device "
                       r"'cpu': leave amp out"):
        device.autocast(torch.device('cpu'), True)
    with device.autocast(torch.device('cpu'), False):
        assert not torch.is_autocast_enabled('cpu')
