"""Every network of timm gives one map, at its own size, on the meta device."""

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, list_modules

from gap_plugin import TimmFeatureBackbone
from networks import LOOK_AT, SMALLEST, UNPADDED, sweep


@pytest.mark.parametrize('name', sweep(timm.list_models()))
def test_gives_one_map_of_the_published_width_and_stride(name):
    size = get_pretrained_cfg(name).input_size
    with torch.device(LOOK_AT):
        backbone = TimmFeatureBackbone(name)
        x = torch.zeros(1, *size)
    with torch.no_grad():
        outputs = backbone.eval()(x)
    assert isinstance(outputs, tuple) and len(outputs) == 1
    batch, channels, *positions = outputs[0].shape
    assert batch == 1 and len(positions) == 2 and outputs[0].is_contiguous()
    assert backbone.out_channels == (channels, )
    (stride, ) = backbone.out_strides
    tolerance = 3 if name in UNPADDED else 1
    for extent, count in zip(size[1:], positions, strict=True):
        assert abs(extent / stride - count) < tolerance


def test_list_of_smallest_networks_covers_every_module_of_timm():
    modules = {m for m in list_modules() if timm.list_models(module=m)}
    assert set(SMALLEST) == modules
    for module, name in SMALLEST.items():
        assert name in timm.list_models(module=module)
