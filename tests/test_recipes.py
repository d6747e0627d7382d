"""Every recipe under ``configs/``, trained at small size."""

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from folders import images, voc
from recipes import RECIPES, read
from runs import mean_precision

NETWORK = {'resnet50': 'test_resnet', 'vit_small_patch16_224': 'test_vit'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images in two classes, one of which is rare."""
    root = tmp_path_factory.mktemp('images')
    for split in ('train', 'val'):
        images(root / split / 'often', 12)
        images(root / split / 'rare', 4, start=12)
    images(root / 'unlabelled', 16)
    voc(root / 'voc')
    return root


def train(leaf, folder, work_dir, epochs=1):
    """Run a recipe on a small network; give the runner, and its start."""
    cfg = read(leaf)
    # weights are not to be had here
    cfg.model.backbone.update(
        pretrained=False, img_size=32,
        model_name=NETWORK[cfg.model.backbone.model_name])
    root = str(folder)
    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        if loader is not None:
            loader.update(num_workers=0, persistent_workers=False,
                          batch_size=8)
            loader.dataset.data_root = (
                f'{root}/voc' if 'multi_label' in leaf else
                f'{root}/unlabelled' if 'simsiam' in leaf else root)
    if 'simsiam' in leaf:
        cfg.model.neck.in_channels = 96
    cfg.train_cfg.max_epochs = epochs
    for schedule in cfg.param_scheduler:
        schedule.update(begin=0, end=epochs)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    runner = Runner.from_cfg(cfg)
    start = {name: value.clone() for name, value in
             runner.model.state_dict().items()}
    runner.train()
    return runner, start


def moved(runner, start):
    """Names of tensors that training has changed."""
    return {name for name, value in runner.model.state_dict().items()
            if not torch.equal(value, start[name])}


def test_linear_probe_trains_neck_and_head_alone(folder, tmp_path):
    changed = moved(*train('linear_probe/resnet50.py', folder, tmp_path))
    assert {name.split('.')[0] for name in changed} == {'neck', 'head'}


def test_layers_ahead_move_more_slowly(folder, tmp_path):
    runner, _ = train('layer_decay/vit_small_patch16_224.py', folder,
                      tmp_path)
    rates = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        if group['params']:
            rates.setdefault(group['layer_id'], set()).add(
                round(group['lr_scale'], 6))
    expected = {i: {round(0.75 ** (max(rates) - i), 6)} for i in rates}
    assert rates == expected and len(rates) > 3
    decays = {group['weight_decay'] for group in
              runner.optim_wrapper.optimizer.param_groups
              if group['params'] and group['params'][0].ndim == 1}
    assert decays == {0.}


def test_bitfit_moves_biases_and_norms_alone(folder, tmp_path):
    runner, start = train('bitfit/vit_small_patch16_224.py', folder, tmp_path)
    changed = {name for name in moved(runner, start)
               if name.startswith('backbone')}
    assert any('norm' not in name for name in changed)
    assert all('norm' in name or name.endswith('bias') for name in changed)
    # the gradient of a key's bias is zero: all others move
    still = {name for name, value in runner.model.backbone.named_parameters()
             if value.requires_grad and f'backbone.{name}' not in changed}
    assert not still
    trained = sum(p.numel() for p in runner.model.backbone.parameters()
                  if p.requires_grad)
    assert trained < 0.05 * sum(p.numel() for p in
                                runner.model.backbone.parameters())


def test_frozen_stem_and_statistics_stay(folder, tmp_path):
    changed = moved(*train('frozen_stem/resnet50.py', folder, tmp_path))
    network = {name.removeprefix('backbone.timm_model.')
               for name in changed if name.startswith('backbone')}
    assert network
    assert not [name for name in network
                if 'running' in name or name.startswith(('conv1', 'layer1'))]


def test_metric_learning_compares_directions(folder, tmp_path):
    runner, start = train('metric_learning/resnet50.py', folder, tmp_path)
    assert 'head.norm_product.weight' in moved(runner, start)
    model = runner.model.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.extract_feat(x)
        features = features[-1] if isinstance(features, tuple) else features
        weight = model.head.norm_product.weight
        cosine = torch.nn.functional.cosine_similarity(
            features[:, None], weight[None], dim=2)
        torch.testing.assert_close(model(x), 30. * cosine, rtol=1e-4,
                                   atol=1e-4)


def test_rare_classes_are_counted(folder, tmp_path):
    runner, _ = train('long_tailed/resnet50.py', folder, tmp_path)
    loss = runner.model.head.loss_module
    assert type(loss).__name__ == 'SeesawLoss'
    assert loss.cum_samples.tolist() == [12., 4.]


def test_several_labels_are_evaluated(folder, tmp_path):
    runner, _ = train('multi_label/resnet50.py', folder, tmp_path)
    assert runner.val()['multi-label/mAP'] == pytest.approx(mean_precision(
        runner.model, runner.val_dataloader), rel=1e-4)
    assert runner.model.data_preprocessor.to_onehot
    assert list(tmp_path.glob('best_multi-label_mAP_*.pth'))


def test_two_views_predict_each_other(folder, tmp_path):
    runner, start = train('simsiam/resnet50.py', folder, tmp_path, epochs=2)
    assert [n for n in moved(runner, start) if n.startswith('backbone')]
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert (np.abs(losses) <= 1).all()  # a negative cosine


def test_every_recipe_is_run():
    source = open(__file__).read()
    assert RECIPES and all(f"'{leaf}'" in source for leaf in RECIPES)
