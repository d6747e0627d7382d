"""Settings for all tests."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # hosts tell of optional parts
    import gap_plugin  # noqa: F401

import pytest
import torch
from mmengine.registry import DefaultScope

from networks import lacks


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
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def lite0_weights(tmp_path_factory):
    """Real ImageNet weights of ``tf_efficientnet_lite0``."""
    path = tmp_path_factory.mktemp('weights') / 'lite0.safetensors'
    script = (Path(__file__).parents[1] / 'tools' / 'model_converters' /
              'efficientnet_lite_to_timm.py')
    subprocess.run([sys.executable, str(script), str(path)], check=True,
                   capture_output=True)
    return path
