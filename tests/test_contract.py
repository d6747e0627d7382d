r"""What users depend on: names, arguments, flags, columns, fields.

A name may be added. One that is taken away, or renamed, fails here.
``data/before`` was made by version 0.1.0 of this package:

    OPTIONS='model.backbone.model_name=test_vit
        model.backbone.timm_kwargs.embed_dim=16
        model.backbone.timm_kwargs.depth=1
        model.backbone.timm_kwargs.num_heads=2
        train_dataloader.dataset.indices=32 val_dataloader.dataset.indices=16
        train_dataloader.batch_size=16 train_cfg.max_epochs=1'
    python tools/train.py configs/digits/test_nfnet.py --cfg-options $OPTIONS
    python tools/linear_probe.py configs/digits/test_nfnet.py --freeze \\
        --checkpoint epoch_1.pth --epochs 2 --cfg-options $OPTIONS
"""

import csv
import inspect
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS
from mmpretrain.registry import (
    DATASETS,
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)

import gap_plugin

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / 'configs' / 'digits' / 'test_nfnet.py'
BEFORE = Path(__file__).parent / 'data' / 'before'

REGISTERED = {
    'TimmFeatureBackbone': MODELS, 'TimmFeatureClassifier': MODELS,
    'GAPNeck': MODELS, 'BNNeck': MODELS, 'LinearHead': MODELS,
    'TimmTrainTransform': TRANSFORMS, 'TimmTestTransform': TRANSFORMS,
    'LoadTimmImage': TRANSFORMS, 'CenterPad': TRANSFORMS, 'Digits': DATASETS,
    'AtomicCheckpointHook': HOOKS, 'BindPipelineHook': HOOKS,
    'ClassActivationHook': HOOKS,
    'Bfloat16OptimWrapper': OPTIM_WRAPPERS,
    'timm_auto_wrap_policy': FUNCTIONS,
}

ARGUMENTS = {
    'TimmFeatureBackbone': dict(
        model_name=inspect.Parameter.empty, pretrained=False,
        checkpoint_path=None, in_channels=3, out_feature='final_conv',
        out_indices=None, frozen_stages=-1, tune='all', norm_eval=False,
        with_cp=False, channels_last=False, deploy=False, img_size=None,
        timm_kwargs=None, init_cfg=None),
    'BNNeck': dict(
        in_channels=inspect.Parameter.empty, eps=1e-5, momentum=0.1,
        affine=True, freeze_bias=False, init_cfg=None),
    'LinearHead': dict(
        num_classes=inspect.Parameter.empty,
        in_channels=inspect.Parameter.empty, bias=True, dropout=0.),
    'TimmFeatureClassifier': dict(
        backbone=inspect.Parameter.empty, neck=None, head=None,
        pretrained=None, train_cfg=None, data_preprocessor=None,
        init_cfg=None),
    'TimmTestTransform': dict(model_name=None, in_channels=3),
    'TimmTrainTransform': dict(model_name=None, in_channels=3),
    'LoadTimmImage': dict(
        in_channels=None, bits=None, upright=True, backend_args=None),
    'CenterPad': dict(size=inspect.Parameter.empty, pad_val=0),
    'Digits': dict(split='train'),
    'ClassActivationHook': dict(
        interval=50, classes=None, topk=1, up_to_factor=False),
    'timm_auto_wrap_policy': dict(min_num_params=100_000),
}

FUNCTIONS_OF_THE_PACKAGE = {
    'timm_test_pipeline': (
        'model_name img_size use_test_size in_channels interpolation '
        'crop_pct crop_mode'),
    'timm_train_pipeline': (
        'model_name img_size in_channels interpolation scale ratio hflip '
        'color_jitter auto_augment random_erasing'),
    'allow_classes': 'names',
    'class_activation_map': 'model inputs classes up_to_factor',
}

SHARED = ('--work-dir --amp --no-pin-memory --cfg-options --launcher '
          '--local_rank --local-rank')
STORES = (f'{SHARED} --checkpoint --out --engine --dtype --skip-bad --force '
          '--views')
FLAGS = {
    'train.py': f'{SHARED} --resume --no-validate --auto-scale-lr '
                '--no-persistent-workers',
    'test.py': f'{SHARED} --out --out-item --tta --show-dir --show '
               '--interval --wait-time',
    'extract_features.py': f'{STORES} --splits',
    'linear_probe.py': f'{STORES} --epochs --lr --weight-decay --test --knn '
                       '--shots --freeze --no-validate --resume',
    'report.py': f'{SHARED} --out --suspects --split --features --skip-bad '
                 '--force --engine',
    'rank_backbones.py': (
        '--models --data-root --config --no-pretrained --weights --out '
        '--epochs --lr --weight-decay --engine --amp --skip-bad '
        '--timing-batch '
        '--keep-features --force --cfg-options'),
    'make_config.py': (
        '--data-root --dataset --train-list --val-list --classes --val-share '
        '--recipe --checkpoint --img-size --epochs --batch-size --workers '
        '--seed --out --force'),
    'cam.py': '--out --classes --topk --max-images --up-to-factor --force '
              '--cfg-options',
    'predict.py': (
        '--out --topk --threshold --all --label-type --output-type '
        '--batch-size --workers --engine --amp --cam --resume --force '
        '--cfg-options'),
    'backbones.py': '--pretrained --max-params --min-size --json',
}

TINY = [
    'model.backbone.model_name=test_vit',
    'model.backbone.timm_kwargs.embed_dim=16',
    'model.backbone.timm_kwargs.depth=1',
    'model.backbone.timm_kwargs.num_heads=2',
    'train_dataloader.dataset.indices=32', 'train_dataloader.batch_size=16',
    'val_dataloader.dataset.indices=16',
    'test_dataloader.dataset.indices=16'
]


def tool(monkeypatch, name, *arguments):
    """A script of ``tools/``, run as a user runs it but in this process."""
    path = ROOT / 'tools' / name
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    runpy.run_path(str(path), run_name='__main__')


@pytest.mark.parametrize('name', REGISTERED)
def test_names_are_registered(name):
    assert REGISTERED[name].get(name) is not None


@pytest.mark.parametrize('name', ARGUMENTS)
def test_arguments_keep_their_names_and_defaults(name):
    part = REGISTERED[name].get(name)
    found = inspect.signature(part).parameters
    assert {key: found[key].default for key in ARGUMENTS[name]} == (
        ARGUMENTS[name])


@pytest.mark.parametrize('name', FUNCTIONS_OF_THE_PACKAGE)
def test_functions_keep_their_arguments(name):
    found = inspect.signature(getattr(gap_plugin, name)).parameters
    assert set(FUNCTIONS_OF_THE_PACKAGE[name].split()) <= set(found)


def test_the_package_gives_all_that_is_registered_by_name():
    names = set(REGISTERED) - {'CenterPad', 'timm_auto_wrap_policy'}
    assert names <= set(gap_plugin.__all__)
    assert gap_plugin.__version__


def test_what_a_backbone_publishes():
    backbone = gap_plugin.TimmFeatureBackbone('test_resnet')
    for name in ('timm_model', 'out_indices', 'out_channels', 'out_strides',
                 'image_size', 'pretrained_cfg', 'get_layer_depth',
                 'switch_to_deploy', 'num_extra_tokens'):
        assert hasattr(backbone, name), name


@pytest.mark.parametrize('name', FLAGS)
def test_flags_of_a_command(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        tool(monkeypatch, name, '--help')
    assert not ended.value.code
    found = set(re.findall(r'--[\w-]+', capsys.readouterr().out))
    assert set(FLAGS[name].split()) <= found


def test_every_shipped_config_keeps_its_place():
    found = {path.relative_to(ROOT / 'configs').as_posix()
             for path in (ROOT / 'configs').rglob('*.py')}
    recipes = {name for name in found if not name.startswith('_base_')}
    networks = ('convnext_tiny', 'eca_nfnet_l1', 'resnet50',
                'swin_tiny_patch4_window7_224', 'vit_small_patch16_224')
    assert recipes >= {
        'digits/test_nfnet.py', 'digits/tf_efficientnet_lite0.py',
        'linear_probe/resnet50.py', 'bitfit/vit_small_patch16_224.py',
        'frozen_stem/resnet50.py', 'layer_decay/vit_small_patch16_224.py',
        'metric_learning/resnet50.py', 'long_tailed/resnet50.py',
        'multi_label/resnet50.py', 'simsiam/resnet50.py',
        'fsdp/vit_small_patch16_224.py', 'deepspeed/vit_small_patch16_224.py',
        *(f'{folder}/{network}.py' for folder in ('imagenet', 'image_folder')
          for network in networks)}


def test_a_probe_writes_what_it_wrote(monkeypatch, tmp_path):
    """Stores, a table and a checkpoint; a checkpoint made before loads."""
    tool(monkeypatch, 'linear_probe.py', DIGITS, '--freeze', '--checkpoint',
         BEFORE / 'epoch_1.pth', '--epochs', 2, '--knn', 3, '--work-dir',
         tmp_path, '--cfg-options', *TINY)
    with open(tmp_path / 'linear_probe.csv', encoding='utf-8') as file:
        assert csv.DictReader(file).fieldnames == [
            'method', 'lr', 'weight_decay', 'k', 'shots', 'split', 'metric',
            'value', 'std', 'epoch', 'kept', 'C', 'low', 'high', 'norm']
    saved = torch.load(tmp_path / 'linear_probe.pth', weights_only=True)
    assert set(saved) >= {'meta', 'state_dict'}
    assert set(saved['meta']) >= {
        'dataset_meta', 'cfg', 'epoch', 'gap_plugin_version'}
    folder = tmp_path / 'features' / 'val'
    assert {path.name for path in folder.iterdir()} == {
        'features.npy', 'labels.npy', 'sample_ids.npy', 'store.json'}
    before, now = (json.loads((path / 'store.json').read_text())
                   for path in (BEFORE / 'val', folder))
    assert set(now) >= set(before)
    assert set(now['fingerprint']) >= set(before['fingerprint'])
    assert set(now['files']) == set(before['files'])
    # the same weights, images and settings: the same features
    for name in ('labels.npy', 'sample_ids.npy'):
        assert (folder / name).read_bytes() == (
            BEFORE / 'val' / name).read_bytes()


def test_a_store_made_before_opens(monkeypatch, tmp_path):
    """``linear_probe.py`` takes it where it would have been made."""
    shutil.copytree(BEFORE / 'val', tmp_path / 'val')
    path = tmp_path / 'val' / 'store.json'
    made = json.loads(path.read_text())
    made['fingerprint']['versions']['torch'] = 'another'
    path.write_text(json.dumps(made))
    with pytest.raises(SystemExit) as ended:  # by what it says of itself
        tool(monkeypatch, 'extract_features.py', DIGITS, '--checkpoint',
             BEFORE / 'epoch_1.pth', '--splits', 'val', '--out', tmp_path,
             '--work-dir', tmp_path, '--cfg-options', *TINY)
    assert 'versions' in str(ended.value.code)
    assert 'damaged' not in str(ended.value.code)


def test_a_checkpoint_made_before_goes_on(monkeypatch, tmp_path):
    tool(monkeypatch, 'train.py', DIGITS, '--resume', BEFORE / 'epoch_1.pth',
         '--work-dir', tmp_path, '--cfg-options', *TINY,
         'train_cfg.max_epochs=2')
    made = torch.load(tmp_path / 'epoch_2.pth', weights_only=True)
    before = torch.load(BEFORE / 'epoch_1.pth', weights_only=True)
    assert set(made) >= set(before)
    assert set(made['meta']) >= set(before['meta'])
    assert list(made['state_dict']) == list(before['state_dict'])
    assert (made['meta']['epoch'], made['meta']['iter']) == (2, 4)


@pytest.mark.parametrize('source', [
    '--config', pytest.param('--data-root', marks=pytest.mark.full)])
def test_a_ranking_writes_what_it_wrote(source, monkeypatch, tmp_path):
    given = DIGITS
    if source == '--data-root':
        given = tmp_path / 'images'
        _folder(given)
    tool(monkeypatch, 'rank_backbones.py', '--models', 'test_vit', source,
         given, '--no-pretrained', '--epochs', 1, '--out', tmp_path,
         '--cfg-options', 'train_dataloader.batch_size=8',
         *(TINY[4:6] + TINY[6:] if source == '--config' else []))
    with open(tmp_path / 'ranking.csv', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        (row, ) = reader
    assert reader.fieldnames == [
        'model', 'accuracy', 'metric', 'images_per_s', 'pareto', 'params_m',
        'features', 'img_size', 'lr', 'weight_decay', 'epoch', 'seconds',
        'error', 'low', 'high']
    assert row['model'] == 'test_vit' and not row['error']
    result = json.loads(
        (tmp_path / 'networks' / 'test_vit' / 'result.json').read_text())
    assert set(result) >= {'row', 'made_by'}
    assert (tmp_path / 'ranking.md').is_file()
    assert (tmp_path / 'ranking.png').is_file()


def _folder(root):
    from PIL import Image
    for label, name in enumerate(('black', 'white')):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.new('RGB', (40, 40 + i), (255 * label, ) * 3).save(
                root / name / f'{i}.png')


def test_a_written_config_has_the_keys_that_people_change(monkeypatch,
                                                          tmp_path):
    _folder(tmp_path / 'images')
    tool(monkeypatch, 'make_config.py', 'resnet18', '--data-root',
         tmp_path / 'images', '--out', tmp_path / 'config.py')
    cfg = Config.fromfile(str(tmp_path / 'config.py'))
    assert set(cfg) >= {
        'default_scope', 'custom_imports', 'model', 'train_pipeline',
        'test_pipeline', 'train_dataloader', 'val_dataloader',
        'test_dataloader', 'val_evaluator', 'test_evaluator',
        'optim_wrapper', 'param_scheduler', 'train_cfg', 'val_cfg',
        'test_cfg', 'auto_scale_lr', 'default_hooks', 'visualizer',
        'randomness'}
    assert cfg.model.backbone.model_name == 'resnet18'
    assert (tmp_path / 'config_train.txt').is_file()
    assert (tmp_path / 'config_val.txt').is_file()


def test_stock_scripts_have_their_launcher():
    from gap_plugin import stock
    assert {'train', 'test', 'publish_model', 'browse_dataset'} <= set(
        stock.scripts())
