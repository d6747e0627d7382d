"""``TimmFeatureClassifier``: what it fills in, and what it leaves alone."""

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample, MultiTaskDataSample
from timm.models import get_pretrained_cfg
from torch import nn

from errors import one_line
from gap_plugin import GAPNeck, LinearHead, TimmFeatureClassifier


def build(backbone='test_resnet', neck=None, head=None, **kwargs):
    if isinstance(backbone, str):
        backbone = dict(type='TimmFeatureBackbone', model_name=backbone)
    neck = [dict(type='GAPNeck'), dict(type='BNNeck')] if (
        neck is None) else neck
    head = head or dict(type='LinearHead', num_classes=3)
    return MODELS.build(
        dict(type='TimmFeatureClassifier', backbone=backbone, neck=neck,
             head=head, **kwargs))


def step(model, size=64, channels=3, samples=None):
    """A loss in training and a prediction; both are to work."""
    samples = samples or [DataSample().set_gt_label(i) for i in range(2)]
    x = torch.randn(2, channels, size, size)
    losses = model.train()(x, samples, mode='loss')
    total = sum(v for k, v in losses.items() if 'loss' in k)
    total.backward()
    return model.eval()(x, samples, mode='predict')


@pytest.fixture
def told():
    """What has been logged, as one text."""
    records = []

    class Keeper(logging.Handler):

        def emit(self, record):
            records.append(f'{record.levelname} {record.getMessage()}')

    logger = MMLogger.get_current_instance()
    keeper = Keeper()
    logger.addHandler(keeper)
    yield lambda: '\n'.join(records)
    logger.removeHandler(keeper)


GAP = dict(type='GAPNeck')


@pytest.mark.parametrize('neck, head, widths', [
    ([GAP, dict(type='BNNeck')], dict(type='LinearHead', num_classes=3),
     dict(neck_1=96, head=96)),
    ([dict(type='GlobalAveragePooling'),
      dict(type='LinearNeck', out_channels=24)],
     dict(type='LinearClsHead', num_classes=3), dict(neck_1=96, head=24)),
    (dict(type='GeneralizedMeanPooling'),
     dict(type='StackedLinearClsHead', num_classes=3, mid_channels=[8]),
     dict(head=96)),
    ([GAP, dict(type='LinearNeck', out_channels=40), dict(type='BNNeck')],
     dict(type='ArcFaceClsHead', num_classes=3),
     dict(neck_1=96, neck_2=40, head=40)),
    (dict(type='LinearNeck', out_channels=12, gap_dim=2),
     dict(type='MultiLabelLinearClsHead', num_classes=3),
     dict(neck=96, head=12)),
    (GAP, dict(type='LinearHead', num_classes=3, in_channels=96), {}),
])
def test_widths_are_filled_in_through_any_chain(neck, head, widths, told):
    model = build(neck=neck, head=head)
    for place, width in widths.items():
        place = place.replace('_', '.')
        assert f'{place}.in_channels = {width}' in told()
    assert told().count('in_channels = ') == len(widths)
    samples = [DataSample().set_gt_label([i] if 'Multi' in head['type'] else i)
               for i in range(2)]
    for sample in samples:
        if 'Multi' in head['type']:
            sample.set_gt_score(torch.eye(3)[0])
    step(model, samples=samples)


def test_every_task_gets_the_same_width():
    model = build(head=dict(
        type='MultiTaskHead',
        task_heads=dict(
            a=dict(type='LinearClsHead', num_classes=3),
            b=dict(type='LinearHead', num_classes=2))))
    heads = model.head.task_heads
    assert (heads['a'].in_channels, heads['b'].in_channels) == (96, 96)
    samples = []
    for i in range(2):
        sample = MultiTaskDataSample()
        for task in 'ab':
            sample.set_field(DataSample().set_gt_label(i), task)
        samples.append(sample)
    step(model, samples=samples)


def test_tasks_of_tasks_get_the_same_width():
    model = build(head=dict(
        type='MultiTaskHead',
        task_heads=dict(a=dict(
            type='MultiTaskHead',
            task_heads=dict(b=dict(type='LinearClsHead', num_classes=3))))))
    assert model.head.task_heads['a'].task_heads['b'].in_channels == 96


def test_parts_that_fuse_levels_get_all_widths():
    model = build(
        dict(type='TimmFeatureBackbone', model_name='hrnet_w18_small',
             out_indices=(1, 2, 3, 4)),
        neck=[dict(type='HRFuseScales'), GAP])
    assert model.neck[0].in_channels == list(model.backbone.out_channels)
    step(model)


@pytest.mark.parametrize('backbone, width, channels', [
    (dict(type='ResNet', depth=18), 512, 3),
    (dict(type='VisionTransformer', arch='deit-t', img_size=64), 192, 3),
    (dict(type='ConvNeXt', arch='atto'), 320, 3),
    (dict(type='LeNet5'), 120, 1),
])
def test_backbones_of_the_host_are_probed(backbone, width, channels):
    before = copy.deepcopy(backbone)
    model = build(backbone)
    assert model.head.in_channels == width and backbone == before
    step(model, 32 if channels == 1 else 64, channels)
    assert not hasattr(model.data_preprocessor, 'mean')


def test_probing_leaves_no_mark_on_the_parts():
    backbone = MODELS.build(dict(type='ResNet', depth=18))
    neck = MODELS.build(dict(type='BNNeck', in_channels=512))
    before = copy.deepcopy(nn.ModuleList([backbone, neck]).state_dict())
    model = build(backbone, neck=[GAP, neck])
    after = nn.ModuleList([model.backbone, model.neck[1]]).state_dict()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0)


@pytest.mark.parametrize('kwargs, parts', [
    (dict(head=dict(type='LinearHead', num_classes=3, in_channels=64)),
     ['head.in_channels is 64', "'test_resnet' gives 96"]),
    (dict(neck=[GAP, dict(type='BNNeck', in_channels=512)]),
     ['neck.1.in_channels is 512', "'test_resnet' gives 96"]),
    (dict(neck=GAP, head=dict(type='LinearClsHead', num_classes=3,
                              in_channels=9)),
     ['head.in_channels is 9', '96']),
])
def test_width_that_contradicts_the_network_is_refused(kwargs, parts):
    with pytest.raises(ValueError) as info:
        build(**kwargs)
    for part in parts:
        assert part in one_line(info)


class Mute(nn.Module):
    """A backbone that cannot be probed."""

    def forward(self, x):
        raise ValueError('not now')


def test_width_that_cannot_be_found_is_asked_for():
    with pytest.raises(ValueError) as info:
        build(Mute(), neck=GAP)
    assert 'head.in_channels is left out' in one_line(info)
    build(Mute(), neck=GAP, head=dict(type='LinearHead', num_classes=3,
                                      in_channels=7))


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'dpn48b',
                                  'test_nfnet'])
def test_preprocessor_follows_timm(name):
    model = build(name)
    cfg = get_pretrained_cfg(name)
    for key in ('mean', 'std'):
        ours = getattr(model.data_preprocessor, key).flatten() / 255
        torch.testing.assert_close(ours, torch.tensor(getattr(cfg, key)),
                                   rtol=1e-5, atol=1e-6)
    assert model.data_preprocessor.to_rgb
    assert model.data_preprocessor.num_classes == 3


def test_one_number_serves_all_channels(told):
    build(data_preprocessor=dict(mean=127.5, std=127.5))
    assert 'WARNING' not in told()
    build(data_preprocessor=dict(mean=1., std=127.5))
    assert 'WARNING data_preprocessor.mean is 1.0' in told()


def test_unknown_preprocessor_is_named_by_the_registry():
    with pytest.raises(KeyError, match='Typo'):
        build(data_preprocessor=dict(type='Typo'))


@pytest.mark.parametrize('channels', [1, 4])
def test_preprocessor_follows_the_channels(channels):
    model = build(dict(type='TimmFeatureBackbone', model_name='test_resnet',
                       in_channels=channels))
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.shape[0] == channels
    assert not preprocessor.to_rgb
    batch = dict(inputs=[torch.zeros(channels, 64, 64, dtype=torch.uint8)] * 2,
                 data_samples=[DataSample().set_gt_label(0)] * 2)
    assert len(model.test_step(batch)) == 2


def test_what_the_config_gives_stays(told):
    given = dict(mean=[1., 2., 3.], std=[4., 5., 6.], to_rgb=False,
                 num_classes=7)
    preprocessor = copy.deepcopy(given)
    model = build(data_preprocessor=preprocessor)
    built = model.data_preprocessor
    assert built.mean.flatten().tolist() == given['mean']
    assert built.std.flatten().tolist() == given['std']
    assert (built.to_rgb, built.num_classes) == (False, 7)
    assert 'WARNING data_preprocessor.mean is [1.0, 2.0, 3.0]' in told()
    assert f'trained with {[127.5] * 3}' in told()
    assert preprocessor == given


def test_statistics_with_few_digits_are_no_contradiction(told):
    build('resnet18',
          data_preprocessor=dict(mean=[123.67, 116.28, 103.5],
                                 std=[58.395, 57.12, 57.375]))
    assert 'WARNING' not in told()


def test_one_block_says_what_was_filled_in(told):
    build()
    block = [r for r in told().split('INFO ') if 'filled in' in r]
    assert len(block) == 1
    for word in ("'test_resnet'", 'neck.1.in_channels = 96',
                 'head.in_channels = 96', 'data_preprocessor.mean',
                 'data_preprocessor.to_rgb = True'):
        assert word in block[0]


def test_config_is_left_as_it_is():
    cfg = dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name='test_resnet'),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type='LinearHead', num_classes=3), data_preprocessor={})
    before = copy.deepcopy(cfg)
    MODELS.build(cfg)
    assert cfg == before


def test_it_is_the_stock_classifier_otherwise():
    torch.manual_seed(0)
    ours = build(neck=[GAP, dict(type='BNNeck')])
    stock = ImageClassifier(ours.backbone, ours.neck, ours.head,
                            data_preprocessor=ours.data_preprocessor)
    assert isinstance(ours, ImageClassifier)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x), rtol=0,
                               atol=0)


def test_modules_that_are_built_already_are_taken():
    head = LinearHead(3, 96)
    model = TimmFeatureClassifier(
        dict(type='TimmFeatureBackbone', model_name='test_resnet'),
        GAPNeck(), head)
    assert model.head is head
    step(model)


def test_a_width_of_none_is_filled_in():
    model = build(neck=[GAP, dict(type='BNNeck', in_channels=None)])
    assert model.neck[1].in_channels == 96


def test_types_may_be_classes_and_scoped_names():
    model = build(neck=[dict(type=GAPNeck), dict(type='mmpretrain.BNNeck')],
                  head=dict(type=LinearHead, num_classes=3))
    assert (model.neck[1].in_channels, model.head.in_channels) == (96, 96)
    step(model)


class Picky(nn.Module):
    """A neck that reads what a blank tensor does not have."""

    def forward(self, feats):
        return feats[-1].meta['height']


def test_neck_that_cannot_be_probed_is_left_alone():
    head = dict(type='LinearHead', num_classes=3, in_channels=96)
    assert build(neck=[GAP, Picky()], head=head).head.in_channels == 96
    with pytest.raises(ValueError, match='head.in_channels is left out'):
        build(neck=[GAP, Picky()])
