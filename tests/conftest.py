"""Settings for all tests."""

import functools
import os
import random
import warnings
from importlib import import_module

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # hosts tell of optional parts
    import gap_plugin  # noqa: F401

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from commands import MODULES, OURS, python
from networks import lacks
from state import changed, state

# ahead of any fake GPU: a first backward pass with one starts threads, and
# nothing that is forked off then can train
torch.ones(1, requires_grad=True).sum().backward()


def pytest_collection_modifyitems(items):
    """Skip what an older timm lacks, by name."""
    for item in items:
        parameters = getattr(item, 'callspec', None)
        reason = lacks(getattr(item, 'originalname', item.name),
                       parameters.params if parameters else {})
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _clean_state():
    """Seed, and forget the scope that a runner of another test has set."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    DefaultScope._instance_dict.clear()


def _checked(name, main):
    """A command that tells what it has left behind."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        before = state()
        try:
            return main(*args, **kwargs)
        finally:
            left = changed(before, state())
            assert not left, f'the command {name} leaves behind: {left}'

    return run


@pytest.fixture(autouse=True, scope='session')
def _commands_leave_nothing_behind():
    """Compare what a process holds for all around each command."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MODULES.values():
            module = import_module(f'gap_plugin.cli.{name}')
            patch.setattr(module, 'main', _checked(name, module.main))
        yield


@pytest.fixture(scope='session')
def lite0_weights(tmp_path_factory):
    """Real ImageNet weights of ``tf_efficientnet_lite0``."""
    path = tmp_path_factory.mktemp('weights') / 'lite0.safetensors'
    python(OURS / 'model_converters' / 'efficientnet_lite_to_timm.py', path)
    return path
