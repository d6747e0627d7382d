"""Settings for all tests."""

import os
import warnings

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # hosts tell of optional parts
    import gap_plugin  # noqa: F401

import pytest
import torch
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _clean_state():
    """Seed, and forget the scope that a runner of another test has set."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    DefaultScope._instance_dict.clear()
