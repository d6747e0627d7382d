"""Each argument of each registered part is checked where it is given."""

import inspect

import pytest

import gap_plugin
from errors import one_line
from gap_plugin.datasets import LoadTimmImage
from gap_plugin.datasets.transforms import CenterPad

NETWORK = dict(model_name='test_resnet')
OPTIONS = dict(
    img_size='a', interpolation='best', in_channels=0, model_name=5)
TEST = dict(OPTIONS, use_test_size='no', crop_pct='1', crop_mode='middle')
TRAIN = dict(OPTIONS, scale=.5, ratio=(2, 1), hflip=2, color_jitter=-1,
             auto_augment='rand-m9', random_erasing='0.1')

#: What is called -> what it needs, and each of its arguments, wrong.
WRONG = {
    gap_plugin.BNNeck: (dict(in_channels=4), dict(
        in_channels=4., eps='1e-5', momentum=2, affine='no', freeze_bias=1,
        init_cfg='Normal')),
    gap_plugin.GAPNeck: ({}, {}),
    gap_plugin.LinearHead: (dict(in_channels=4, num_classes=3), dict(
        in_channels=True, num_classes='3', bias='no', dropout='0.1',
        init_cfg=5)),
    gap_plugin.TimmFeatureBackbone: (NETWORK, dict(
        model_name='', pretrained='yes', checkpoint_path=5, checkpoint_key=5,
        in_channels=0,
        out_feature=5, out_indices='12', frozen_stages=True, tune=True,
        norm_eval='no', with_cp='no', channels_last=0, deploy='no',
        img_size='a', timm_kwargs='a', init_cfg='Normal')),
    gap_plugin.TimmFeatureClassifier: (dict(backbone=dict(
        type='TimmFeatureBackbone', **NETWORK)), dict(
        backbone='test_resnet', neck='GAPNeck', head='LinearHead',
        pretrained=5, train_cfg='a', data_preprocessor='a', init_cfg=5)),
    gap_plugin.Digits: ({}, dict(split='val', pipeline='a')),
    CenterPad: (dict(size=(8, 8)), dict(size='8', pad_val='a')),
    gap_plugin.timm_test_pipeline: (NETWORK, TEST),
    gap_plugin.timm_train_pipeline: (NETWORK, TRAIN),
    gap_plugin.TimmTestTransform: (NETWORK, dict(TEST, network='a')),
    gap_plugin.TimmTrainTransform: (NETWORK, dict(TRAIN, network='a')),
    LoadTimmImage: ({}, dict(in_channels=0, bits=7, upright='no',
                             backend_args='a', network='a')),
}


@pytest.mark.parametrize('call', WRONG, ids=lambda call: call.__name__)
def test_every_argument_is_checked(call):
    needed, wrong = WRONG[call]
    call(**needed)
    kinds = inspect.Parameter
    taken = {name for name, value in inspect.signature(
        call).parameters.items()
        if value.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)}
    assert taken | set(getattr(call, 'OPTIONS', ())) == set(wrong)
    for name, value in wrong.items():
        with pytest.raises((TypeError, ValueError)) as info:
            call(**{**needed, name: value})
        text = one_line(info)
        assert name in text and repr(value) in text, text


@pytest.mark.parametrize('call, given, parts', [
    (gap_plugin.TimmFeatureBackbone, dict(NETWORK, checkpoint_path=''),
     ['checkpoint_path', 'unset variable of the shell']),
    (gap_plugin.TimmFeatureClassifier, dict(
        backbone=dict(type='TimmFeatureBackbone', **NETWORK),
        neck=['GAPNeck']), ["['GAPNeck']", 'dict(type=...)']),
    (gap_plugin.timm_train_pipeline, dict(NETWORK, auto_augment='rand-m9'),
     ['rand-m9', "dict(type='RandAugment'"]),
    (gap_plugin.timm_train_pipeline, dict(NETWORK, scale=(.5, '1')),
     ["(0.5, '1')", 'pair']),
    (gap_plugin.BNNeck, dict(in_channels=4, eps=float('nan')), ['eps']),
])
def test_what_is_wrong_is_said_in_one_line(call, given, parts):
    with pytest.raises((TypeError, ValueError)) as info:
        call(**given)
    for part in parts:
        assert part in one_line(info)


def test_one_level_is_given_as_hosts_give_it():
    one, many = (gap_plugin.TimmFeatureBackbone('test_resnet', out_indices=x)
                 for x in (2, (2, )))
    assert one.out_indices == many.out_indices == (2, )
    assert one.out_channels == many.out_channels


def test_a_list_of_configs_holds_configs():
    """What ``--cfg-options`` makes of a dict is a list of texts."""
    with pytest.raises(ValueError, match='init_cfg of TimmFeatureBackbone '
                       'must be a dict or a list of them'):
        gap_plugin.TimmFeatureBackbone(**NETWORK, init_cfg=[
            "{'type':'Pretrained'", "'checkpoint':'w.pth'}"])
    gap_plugin.TimmFeatureBackbone(**NETWORK, init_cfg=[])
