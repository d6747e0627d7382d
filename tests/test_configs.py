"""Every leaf config is built and stepped, at small size."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample

import gap_plugin
from recipes import CONFIGS, LEAVES, RECIPES, read

NETWORKS = ('eca_nfnet_l1', 'resnet50', 'convnext_tiny',
            'vit_small_patch16_224', 'swin_tiny_patch4_window7_224')
CLASSIFIERS = [leaf for leaf in LEAVES if not leaf.startswith('simsiam/')]


def test_every_network_has_an_imagenet_and_a_folder_recipe():
    expected = {f'{d}/{n}.py' for n in NETWORKS
                for d in ('imagenet', 'image_folder')}
    expected |= {'digits/test_nfnet.py', 'digits/tf_efficientnet_lite0.py',
                 'fsdp/vit_small_patch16_224.py',
                 'deepspeed/vit_small_patch16_224.py'}
    assert expected | set(RECIPES) == set(LEAVES)


@pytest.mark.parametrize('leaf', LEAVES)
def test_leaf_is_a_difference_of_at_most_ten_lines(leaf):
    assert len((CONFIGS / leaf).read_text().splitlines()) <= 10


@pytest.mark.parametrize(
    'leaf', [leaf for leaf in LEAVES
             if leaf not in RECIPES and not leaf.startswith('deepspeed/')])
def test_leaf_builds_and_steps(leaf):
    cfg = read(leaf)
    init_default_scope('mmpretrain')
    # weights are not to be had here; all else is as it stands
    cfg.model.backbone.update(pretrained=False, checkpoint_path=None)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    # a small image where the network takes one
    size = model.backbone.image_size[0] if 'vit' in leaf or 'swin' in leaf \
        else 64
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


@pytest.mark.parametrize('leaf', CLASSIFIERS)
def test_only_the_network_is_named(leaf):
    cfg = read(leaf)
    text = cfg.pretty_text
    for word in ('in_channels', 'mean=', 'std=', 'interpolation'):
        assert word not in text
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        kinds = [step.type for step in loader.dataset.pipeline]
        assert [k for k in kinds if k.startswith('Timm')]
    assert cfg.model.type == 'TimmFeatureClassifier'


@pytest.mark.parametrize('leaf', CLASSIFIERS)
def test_validation_and_test_are_the_same_data(leaf):
    cfg = read(leaf)
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.custom_imports.imports == [gap_plugin.__name__]
    assert cfg.default_hooks.checkpoint.save_best == 'auto'


def test_eca_nfnet_is_tested_at_416():
    for leaf in ('imagenet/eca_nfnet_l1.py', 'image_folder/eca_nfnet_l1.py'):
        step = read(leaf).test_dataloader.dataset.pipeline[1]
        transform = TRANSFORMS.build(dict(step, model_name='eca_nfnet_l1'))
        image = np.zeros((500, 600, 3), np.uint8)
        assert transform(dict(img=image))['img'].shape == (416, 416, 3)
