"""One option changes the network: every module of timm, any recipe."""

import copy

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from commands import OURS, ROOT, STOCK, python, reported, validated
from folders import write_folder
from networks import LAYOUTS, SMALLER_IMAGES, SMALLEST, full
from runs import top1

#: Twelve networks of different layouts, for whole processes.
TWELVE = ('test_resnet', 'test_efficientnet', 'test_nfnet', 'test_convnext',
          'test_vit', 'test_mambaout', 'test_coatnet', 'test_byobnet',
          'lcnet_035', 'vit_tiny_patch16_224', 'poolformerv2_s12',
          'efficientvim_m1')


RECIPE = ROOT / 'configs' / 'image_folder' / 'resnet50.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    write_folder(root)
    return root


def options(folder, name, **more):
    """As on the command line: the data, and the one option."""
    loaders = {
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test') for key, value in {
            'dataset.data_root': str(folder),
            'batch_size': 2,
            'num_workers': 0,
            'persistent_workers': False
        }.items()
    }
    return {
        **loaders, 'train_cfg.max_epochs': 1,
        'model.backbone.pretrained': False,
        'model.backbone.model_name': name,
        **more
    }


@pytest.mark.parametrize('name', [
    name if name in LAYOUTS else full(name) for name in SMALLEST.values()])
def test_network_trains_and_is_evaluated_by_one_option(
        name, folder, tmp_path):
    cfg = Config.fromfile(str(RECIPE))
    small = SMALLER_IMAGES.get(name)  # to save time, the other option too
    cfg.merge_from_dict(options(
        folder, name, **{
            **({'model.backbone.img_size': small} if small else {}),
            'train_dataloader.dataset.indices': [0, 4],
            'val_dataloader.dataset.indices': [0, 2],
            'default_hooks.checkpoint': None
        }))
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = f'swap_{name}'
    before = copy.deepcopy(cfg.model)
    runner = Runner.from_cfg(cfg)
    model = runner.train()
    assert cfg.model == before
    # AdamW keeps a state of what has had a gradient: plain DDP needs all
    stepped = runner.optim_wrapper.optimizer.state
    without = [n for n, p in model.named_parameters() if p not in stepped]
    assert without == []
    assert len(runner.val_dataloader.dataset.CLASSES) == 2
    assert model.head.fc.out_features == 2
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert accuracy == pytest.approx(top1(model, runner.val_dataloader))
    size = (small, small) if small else resolve_data_config(
        pretrained_cfg=get_pretrained_cfg(name).to_dict(),
        use_test_size=True)['input_size'][1:]
    (batch, ) = runner.val_dataloader
    assert {x.shape[1:] for x in batch['inputs']} == {size}


@pytest.mark.parametrize(
    'tools, name', [(STOCK, TWELVE[0]), (OURS, TWELVE[4])] + [
        full(STOCK, name) for name in TWELVE[1:]] + [full(OURS, TWELVE[0])])
def test_tools_swap_the_network(tools, name, folder, tmp_path):
    flags = [f'{k}={v}' for k, v in options(folder, name).items()]
    process = tools == STOCK and name == TWELVE[0]
    text = python(tools / 'train.py', RECIPE, '--work-dir', tmp_path,
                  '--cfg-options', *flags, process=process)
    assert f'TimmTestTransform for {name}' in text
    result = python(tools / 'test.py', RECIPE, tmp_path / 'epoch_1.pth',
                    '--work-dir', tmp_path, '--cfg-options', *flags,
                    process=process)
    assert reported(result) == validated(text)
