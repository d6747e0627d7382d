"""Every leaf config is built and stepped, at small size."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import gap_plugin
from gap_plugin import TimmFeatureBackbone

ROOT = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(
    str(p.relative_to(ROOT)) for p in ROOT.glob('*/*.py')
    if p.parent.name != '_base_')
NETWORKS = ('eca_nfnet_l1', 'resnet50', 'convnext_tiny',
            'vit_small_patch16_224', 'swin_tiny_patch4_window7_224')


def read(leaf):
    return Config.fromfile(str(ROOT / leaf))


def test_every_network_has_an_imagenet_and_a_folder_recipe():
    expected = {f'{d}/{n}.py' for n in NETWORKS
                for d in ('imagenet', 'image_folder')}
    expected |= {'digits/test_nfnet.py', 'digits/tf_efficientnet_lite0.py'}
    assert expected == set(LEAVES)


@pytest.mark.parametrize('leaf', LEAVES)
def test_leaf_is_a_difference_of_at_most_ten_lines(leaf):
    assert len((ROOT / leaf).read_text().splitlines()) <= 10


@pytest.mark.parametrize('leaf', LEAVES)
def test_leaf_builds_and_steps(leaf, tmp_path):
    cfg = read(leaf)
    init_default_scope('mmpretrain')
    backbone = cfg.model.backbone
    # weights are not to be had here; all else is as it stands
    backbone.update(pretrained=False, checkpoint_path=None)
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    pipeline = cfg.train_dataloader.dataset.pipeline
    size = next(t.get('crop_size', t.get('scale')) for t in pipeline
                if t.type in ('RandomResizedCrop', 'RandomCrop'))
    # a small image where the network takes one
    size = size if 'vit' in leaf or 'swin' in leaf else 64
    batch = dict(
        inputs=list(
            torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)),
        data_samples=[DataSample().set_gt_label(i) for i in range(2)])
    wrapper = Runner.build_optim_wrapper(
        _Host(model), cfg.optim_wrapper)
    losses = model.train_step(batch, wrapper)
    assert torch.isfinite(losses['loss'])
    model.eval()
    (prediction, *_) = model.test_step(batch)
    assert len(prediction.pred_score) == cfg.model.head.num_classes


class _Host:
    """As much of a runner as building an optimizer takes."""

    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize('leaf', LEAVES)
def test_preprocessing_is_that_of_the_weights(leaf):
    cfg = read(leaf)
    with torch.device('meta'):
        backbone = TimmFeatureBackbone(cfg.model.backbone.model_name)
    timm_cfg = backbone.pretrained_cfg
    for ours, theirs in ((cfg.data_preprocessor.mean, timm_cfg['mean']),
                         (cfg.data_preprocessor.std, timm_cfg['std'])):
        assert ours == pytest.approx([v * 255 for v in theirs])
    if 'digits' not in leaf:  # grey: no order of channels
        assert cfg.data_preprocessor.to_rgb
        for transform in cfg.test_dataloader.dataset.pipeline:
            if transform.type == 'ResizeEdge':
                assert transform.interpolation == timm_cfg['interpolation']


@pytest.mark.parametrize('leaf', LEAVES)
def test_validation_and_test_are_the_same_data(leaf):
    cfg = read(leaf)
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.custom_imports.imports == [gap_plugin.__name__]
    assert cfg.default_hooks.checkpoint.save_best == 'auto'


def test_eca_nfnet_is_tested_at_416():
    for leaf in ('imagenet/eca_nfnet_l1.py', 'image_folder/eca_nfnet_l1.py'):
        pipeline = read(leaf).test_dataloader.dataset.pipeline
        crop = next(t for t in pipeline if t.type == 'CenterCrop')
        assert crop.crop_size == 416
