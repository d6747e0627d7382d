"""The contract of the backbone, on the smallest network of every module.

That one step leaves a gradient on every parameter is seen in test_swap.py.
"""

import pytest
import timm
import torch

from gap_plugin import GAPNeck, TimmFeatureBackbone
from networks import (
    LOOK_AT,
    SMALLEST,
    TINY,
    UNPADDED,
    image_size,
    images,
    raw,
    sweep,
)

every_module = pytest.mark.parametrize('name', sweep(SMALLEST.values()))


def timms_average(model, x):
    """The mean over the positions of timm's last map, prefix left out.

    Written from timm's contract alone: ``output_fmt``, the documented
    shapes, and how the pooling of each token network treats its prefix.
    """
    y = model.forward_features(x)
    if torch.is_tensor(y) and y.ndim == 4:
        nhwc = getattr(model, 'output_fmt', '') == 'NHWC'
        return y.mean(dim=(1, 2) if nhwc else (2, 3))
    if torch.is_tensor(y) and y.shape[1] > 2:
        return y[:, getattr(model, 'num_prefix_tokens', 1
                            if hasattr(model, 'cls_token') else 0):].mean(1)
    # several tensors, or class tokens alone: the map is an intermediate
    maps = model.forward_intermediates(
        x, norm=True, output_fmt='NCHW', intermediates_only=True)
    return maps[-1].mean(dim=(2, 3))


@every_module
def test_pooled_map_equals_timms_own_average_pooling(name):
    x = images(name, 1)
    torch.manual_seed(0)
    backbone = TimmFeatureBackbone(
        name, out_feature='forward_features').eval()
    with torch.no_grad():
        (pooled, ) = GAPNeck()(backbone(x))
        expected = timms_average(raw(name), x)
    torch.testing.assert_close(pooled, expected)


@every_module
def test_levels_are_maps_of_the_published_width_and_stride(name):
    count = len(timm.create_model(name, num_classes=0).feature_info)
    indices = tuple(sorted({0, count // 2, count - 1}))
    backbone = TimmFeatureBackbone(name, out_indices=indices).eval()
    size = image_size(name)
    with torch.no_grad():
        maps = backbone(images(name, 1))
    assert tuple(m.shape[1] for m in maps) == backbone.out_channels
    for level, stride in zip(maps, backbone.out_strides, strict=True):
        tolerance = 3.01 if name in UNPADDED else 1
        assert abs(size[0] / stride - level.shape[2]) < tolerance
        assert level.is_contiguous()


@every_module
def test_depths_grow_from_the_stem_and_leave_the_head_deepest(name):
    with torch.device(LOOK_AT):
        backbone = TimmFeatureBackbone(name)
    names = [f'backbone.{n}' for n, _ in backbone.named_parameters()]
    depths = [backbone.get_layer_depth(n, 'backbone.') for n in names]
    found, counts = {d for d, _ in depths}, {c for _, c in depths}
    assert len(counts) == 1
    # the stem of csatv2 is a fixed transform without parameters
    first = 1 if name == 'csatv2' else 0
    assert found == set(range(first, counts.pop() - 1))
    head = backbone.get_layer_depth('head.fc.weight', 'backbone.')
    assert head[0] == max(found) + 1


@pytest.mark.parametrize('name', sweep(
    TINY + ('swin_tiny_patch4_window7_224', )))
def test_levels_equal_timms_features_only(name):
    x = images(name)
    torch.manual_seed(0)
    pyramid = timm.create_model(name, features_only=True).eval()
    expected = pyramid(x)
    indices = pyramid.feature_info.out_indices
    backbone = TimmFeatureBackbone(name, out_indices=tuple(indices)).eval()
    # timm flattens the names of what it keeps: stages.0 is stages_0
    theirs = {
        k.removeprefix('model.'): v
        for k, v in pyramid.state_dict().items()
    }
    with torch.no_grad():
        for key, value in backbone.timm_model.state_dict().items():
            same = theirs.get(key, theirs.get(key.replace('.', '_', 1)))
            value.copy_(same)
    fmt = getattr(pyramid, 'output_fmt', None)
    for ours, theirs in zip(backbone(x), expected, strict=True):
        if str(fmt).endswith('NHWC'):
            theirs = theirs.permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('name', sweep(TINY))
def test_pre_logits_equal_timms_head_without_classifier(name):
    x = images(name)
    torch.manual_seed(0)
    backbone = TimmFeatureBackbone(name, out_feature='pre_logits').eval()
    model = raw(name)
    (ours, ) = backbone(x)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert backbone.out_channels == (expected.shape[1], )


@every_module
def test_pre_logits_are_vectors_of_the_published_width(name):
    with torch.device(LOOK_AT):
        backbone = TimmFeatureBackbone(name, out_feature='pre_logits').eval()
        (vectors, ) = backbone(torch.zeros(1, 3, *image_size(name)))
    assert vectors.shape == (1, *backbone.out_channels)
