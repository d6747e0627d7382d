"""Hooks and features of MMEngine and MMPretrain, on our model."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from PIL import Image

from gap_plugin.engine import Bfloat16OptimWrapper
from runs import PIPELINE, data, model, runner


def states(checkpoint):
    """All tensors of a checkpoint, by name."""
    loaded = torch.load(checkpoint)
    return {
        f'{part}.{name}': value
        for part in ('state_dict', 'ema_state_dict')
        for name, value in loaded.get(part, {}).items()
        if torch.is_tensor(value)
    }


def test_weights_are_averaged_and_a_resumed_run_goes_on(tmp_path):
    hook = [dict(type='EMAHook', momentum=0.1)]
    whole = runner(tmp_path / 'whole', 2, custom_hooks=hook)
    whole.train()
    runner(tmp_path / 'parts', 1, custom_hooks=hook).train()
    rest = runner(tmp_path / 'parts', 2, custom_hooks=hook, resume=True)
    rest.train()
    expected = states(tmp_path / 'whole' / 'epoch_2.pth')
    # state_dict holds the average, ema_state_dict what was trained
    name = 'backbone.timm_model.conv1.0.weight'
    assert not torch.equal(expected[f'state_dict.{name}'],
                           expected[f'ema_state_dict.module.{name}'])
    found = states(tmp_path / 'parts' / 'epoch_2.pth')
    assert expected.keys() == found.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize('frozen', [-1, 1])
def test_statistics_of_norms_are_made_precise(tmp_path, frozen):
    run = runner(
        tmp_path, model=model('test_efficientnet', frozen_stages=frozen),
        train_dataloader=data('train', 32, 8),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.)),
        custom_hooks=[dict(type='PreciseBNHook', num_samples=32)])
    seen = []
    norm = run.model.neck[1].bn
    norm.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach().mean(0)))
    stem = run.model.backbone.timm_model.bn1
    before = stem.running_mean.clone()
    run.train()
    # four batches of training, and the same by the hook
    passes = seen[4:8]
    torch.testing.assert_close(norm.running_mean, torch.stack(passes).mean(0))
    assert torch.equal(stem.running_mean, before) is (frozen == 1)


def test_recipes_are_switched(tmp_path):
    init_default_scope('mmpretrain')
    flipped = [dict(type='RandomFlip', prob=1.), *PIPELINE]
    run = runner(
        tmp_path, 2, custom_hooks=[dict(type='SwitchRecipeHook', schedule=[
            dict(action_epoch=1, train_pipeline=flipped,
                 batch_augments=dict(augments=dict(type='Mixup', alpha=0.8)),
                 loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1,
                           mode='original'))])])
    run.train()
    assert type(run.model.head.loss_module).__name__ == 'LabelSmoothLoss'
    assert run.model.data_preprocessor.batch_augments is not None
    steps = run.train_dataloader.dataset.pipeline.transforms
    assert type(steps[0]).__name__ == 'RandomFlip'


def test_predictions_are_drawn(tmp_path):
    run = runner(tmp_path, default_hooks=dict(visualization=dict(
        type='VisualizationHook', enable=True, interval=8)))
    run.train()
    pictures = list(tmp_path.rglob('vis_image/*.png'))
    assert pictures
    with Image.open(pictures[0]) as image:
        assert len(image.convert('RGB').getcolors(1 << 24)) > 1


def test_training_stops_early(tmp_path):
    run = runner(tmp_path, 6, custom_hooks=[dict(
        type='EarlyStoppingHook', monitor='accuracy/top1', min_delta=101,
        patience=2)])
    run.train()
    assert run.epoch == 3


def test_the_number_of_classes_is_checked(tmp_path):
    hook = [dict(type='ClassNumCheckHook')]
    runner(tmp_path, custom_hooks=hook).train()
    wrong = model()
    wrong['head']['num_classes'] = 9
    with pytest.raises(AssertionError, match=r'num_classes.*\(9\)'):
        runner(tmp_path, model=wrong, custom_hooks=hook).train()


def losses(work_dir, **changes):
    """Loss of every step."""
    run = runner(work_dir, **changes)
    found = []
    step = run.model.train_step

    def train_step(*args, **kwargs):
        done = step(*args, **kwargs)
        found.append(done['loss'].item())
        return done

    run.model.train_step = train_step
    run.train()
    return found, run.model


def test_a_compiled_model_trains_the_same(tmp_path):
    plain = model('test_efficientnet')
    expected, _ = losses(tmp_path / 'a', model=plain)
    # without a C++ compiler; which ops run is up to torch
    run = runner(tmp_path / 'b', model=plain,
                 cfg=dict(compile=dict(backend='aot_eager')))
    run.train()
    history = run.message_hub.get_scalar('train/loss').data[0]
    np.testing.assert_allclose(history, expected, rtol=1e-4)


def test_gradients_are_accumulated(tmp_path):
    """Two halves of a batch give what the batch gives."""
    whole = model('test_vit')
    whole['neck'] = dict(type='GAPNeck')
    sgd = dict(type='SGD', lr=0.05)
    _, expected = losses(tmp_path / 'a', model=whole,
                         train_dataloader=data('train', 32, 8),
                         optim_wrapper=dict(optimizer=sgd))
    _, found = losses(
        tmp_path / 'b', model=whole,
        train_dataloader=data('train', 32, 4),
        optim_wrapper=dict(optimizer=sgd, accumulative_counts=2))
    before = MODELS.build(whole)
    moved = 0
    for (name, value), start in zip(found.named_parameters(),
                                    before.parameters(), strict=True):
        torch.testing.assert_close(
            value, expected.get_parameter(name), rtol=1e-4, atol=1e-6)
        moved += not torch.equal(value, start)
    assert moved


@pytest.mark.parametrize('network', ['test_resnet', 'test_efficientnet',
                                     'test_vit', 'test_convnext'])
def test_channels_last_changes_no_value(tmp_path, network):
    init_default_scope('mmpretrain')
    plain = MODELS.build(model(network))
    build = partial(MODELS.build, model(network, channels_last=True))
    nhwc = build()
    nhwc.load_state_dict(plain.state_dict())
    weights = [p for p in nhwc.backbone.parameters() if p.ndim == 4
               and min(p.shape[1:]) > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last)
               for p in weights)
    x = torch.randn(4, 3, 32, 32)
    seen = []
    first = next(m for m in nhwc.backbone.modules()
                 if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for a, b in zip(plain.backbone(x), nhwc.backbone(x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
        assert b.is_contiguous()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    found, _ = losses(tmp_path, model=model(network, channels_last=True))
    assert np.isfinite(found).all()


def test_bfloat16_trains_on_a_cpu(tmp_path):
    plain, _ = losses(tmp_path / 'a')
    run = runner(tmp_path / 'b', optim_wrapper=dict(
        type='Bfloat16OptimWrapper', optimizer=dict(
            type='SGD', lr=0.05, momentum=0.9)))
    kinds = set()
    run.model.backbone.register_forward_hook(
        lambda module, _, outputs: kinds.add((module.training,
                                              outputs[0].dtype)))
    run.train()
    assert isinstance(run.optim_wrapper, Bfloat16OptimWrapper)
    assert (True, torch.bfloat16) in kinds
    assert (False, torch.float32) in kinds  # validation: val_cfg's fp16
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    history = run.message_hub.get_scalar('train/loss').data[0]
    np.testing.assert_allclose(history[0], plain[0], rtol=0.02)
    assert not np.allclose(history, plain, rtol=1e-6)


def test_validation_takes_bfloat16(tmp_path):
    run = runner(tmp_path, val_cfg=dict(fp16=True))
    kinds = set()
    run.model.backbone.register_forward_hook(
        lambda module, _, outputs: kinds.add((module.training,
                                              outputs[0].dtype)))
    run.val()
    assert kinds == {(False, torch.bfloat16)}


def test_a_copy_of_a_model_is_its_own():
    init_default_scope('mmpretrain')
    first = MODELS.build(model('test_efficientnet'))
    second = copy.deepcopy(first)
    for owner, name, norm, _ in second.backbone._converted._norms:
        assert owner._modules[name] is norm
        assert all(norm is not other for other in first.modules())
