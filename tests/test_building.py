"""A config becomes the model that a runner makes of it, in every command."""

import copy
import multiprocessing
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

import runs
from commands import DIGITS, ROOT, main
from gap_plugin import TimmFeatureBackbone
from gap_plugin.cli.test import _augment
from gap_plugin.datasets import bind_pipeline, source_of
from gap_plugin.engine.building import build_classifier
from gap_plugin.features import FeatureStore, extract

#: Images are not turned around, and less is taken off them.
PREPROCESSOR = dict(to_rgb=False, mean=[10., 20., 30.], std=[50., 60., 70.])


def config(folder, **changes):
    """Images whose red is not their blue, and a preprocessor of the run."""
    for name in 'ab':
        path = folder / 'images' / name
        path.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            rng = np.random.default_rng(i)
            pixels = rng.integers(0, 100, (40, 40, 3), np.uint8)
            pixels[..., 0] += 150
            Image.fromarray(pixels).save(path / f'{i}.png')
    loader = runs.data('test', batch_size=4)
    loader['dataset'] = dict(
        type='CustomDataset', data_root=str(folder / 'images'),
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='TimmTestTransform'), dict(type='PackInputs')])
    return Config(dict(
        dict(custom_imports=dict(imports=['gap_plugin']),
             model=runs.model(), data_preprocessor=dict(PREPROCESSOR),
             default_scope='mmpretrain', randomness=dict(seed=3),
             test_dataloader=loader, test_cfg=dict(),
             test_evaluator=dict(type='Accuracy')), **changes))


def by_runner(cfg, folder):
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(folder / 'runner')
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    return runner


def settings():
    """What a runner sets for the whole process."""
    return dict(
        start=multiprocessing.get_start_method(),
        threads=cv2.getNumThreads(),
        scope=DefaultScope.get_current_instance().scope_name,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        benchmark=torch.backends.cudnn.benchmark,
        cudnn=torch.backends.cudnn.deterministic, number=torch.rand(1).item(),
        other=np.random.rand())


@pytest.fixture
def _as_found():
    start = multiprocessing.get_start_method(allow_none=True)
    yield
    multiprocessing.set_start_method(start, force=True)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures('_as_found')
@pytest.mark.parametrize('changes', [
    {}, dict(randomness=dict(seed=1, deterministic=True)),
    dict(env_cfg=dict(cudnn_benchmark=True, mp_cfg=dict(
        mp_start_method='spawn', opencv_num_threads=1)))],
    ids=['plain', 'deterministic', 'env_cfg'])
def test_weights_and_process_are_as_a_runner_leaves_them(tmp_path, changes):
    cfg = config(tmp_path, **changes)
    runner = by_runner(cfg, tmp_path)
    expected = settings()
    DefaultScope._instance_dict.clear()
    multiprocessing.set_start_method('forkserver', force=True)
    cv2.setNumThreads(2)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
    model = build_classifier(cfg)
    assert settings() == expected
    state = runner.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_preprocessor_of_the_run_is_that_of_the_features(tmp_path):
    cfg = config(tmp_path)
    runner = by_runner(cfg, tmp_path)
    cfg.dump(str(tmp_path / 'config.py'))
    main('extract', tmp_path / 'config.py', '--splits', 'test', '--work-dir',
         tmp_path, '--engine', 'torch')
    store = FeatureStore(tmp_path / 'features' / 'test')
    runner.model.eval()
    rows = []
    with torch.no_grad():
        loader = Runner.build_dataloader(cfg.test_dataloader)
        bind_pipeline(loader.dataset, source_of(runner.model))
        for batch in loader:
            inputs = runner.model.data_preprocessor(batch)['inputs']
            (maps, ) = runner.model.backbone(inputs)
            rows.append(maps.mean((2, 3)))
    torch.testing.assert_close(torch.tensor(store.features),
                               torch.cat(rows), rtol=0, atol=0)


def test_the_preprocessor_of_a_model_comes_first(tmp_path):
    cfg = config(tmp_path)
    cfg.model.data_preprocessor = dict(to_rgb=True)
    model = build_classifier(cfg)
    assert model.data_preprocessor.to_rgb
    assert model.data_preprocessor.mean.flatten().tolist() != [10, 20, 30]


def test_features_of_another_preprocessor_are_another_store(tmp_path):
    cfg = config(tmp_path)
    before = copy.deepcopy(cfg)
    before.pop('data_preprocessor')
    extract(build_classifier(before), before, 'test', tmp_path / 'store')
    with pytest.raises(ValueError, match='preprocessor'):
        extract(build_classifier(cfg), cfg, 'test', tmp_path / 'store')


@pytest.mark.parametrize('own', [True, False])
def test_augmented_tests_keep_the_preprocessor(tmp_path, own):
    cfg = config(tmp_path)
    if own:
        cfg.model.data_preprocessor = dict(mean=[1., 2., 3.],
                                           std=[4., 5., 6.])
    _augment(cfg)
    module = by_runner(cfg, tmp_path).model.module
    assert module.data_preprocessor.mean.flatten().tolist() == (
        [1., 2., 3.] if own else PREPROCESSOR['mean'])


@pytest.mark.parametrize('place', ['argument', 'load_from'])
def test_an_empty_name_is_no_checkpoint(tmp_path, place):
    """Of a variable that the shell does not know, such as --checkpoint."""
    cfg = config(tmp_path)
    if place == 'load_from':
        cfg.load_from = ''
    with pytest.raises(FileNotFoundError, match="checkpoint '' can not be"):
        build_classifier(cfg, '' if place == 'argument' else None)


def test_norms_over_processes_are_those_of_one(tmp_path):
    cfg = config(tmp_path)
    cfg.model = dict(
        type='ImageClassifier', head=dict(
            type='LinearClsHead', num_classes=2, in_channels=512),
        neck=dict(type='GlobalAveragePooling'), backbone=dict(
            type='ResNet', depth=18, norm_cfg=dict(type='SyncBN')))
    model = build_classifier(cfg)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


@FUNCTIONS.register_module()
def collate_turned(samples, turned=False):
    return FUNCTIONS.get('default_collate')(
        [dict(sample, inputs=255 - sample['inputs']) if turned else sample
         for sample in samples])


def test_arguments_of_a_collate_function_are_kept(tmp_path):
    features = []
    for turned in (False, True):
        cfg = config(tmp_path)
        cfg.test_dataloader.collate_fn = dict(type='collate_turned',
                                              turned=turned)
        features.append(extract(build_classifier(cfg), cfg, 'test',
                                tmp_path / f'{turned}').features)
    assert not np.allclose(*features)


def test_no_part_builds_a_model_by_itself():
    """But for the one function, and models that build their parts."""
    package = ROOT / 'gap_plugin'
    found = {path.relative_to(package).as_posix()
             for path in package.rglob('*.py')
             if re.search(r'\bMODELS\.build\(', path.read_text('utf-8'))}
    assert {path for path in found if not path.startswith('models/')} == {
        'engine/building.py'}


def test_a_deterministic_command_leaves_the_process_as_it_was(tmp_path):
    """The check around each command compares it."""
    cfg = config(tmp_path, randomness=dict(seed=0, deterministic=True))
    cfg.env_cfg = dict(cudnn_benchmark=True)
    cfg.dump(str(tmp_path / 'config.py'))
    main('extract', tmp_path / 'config.py', '--splits', 'test', '--work-dir',
         tmp_path)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize('command', ['train', 'extract'])
def test_commands_take_their_own_images_among_other_networks(tmp_path,
                                                             command):
    held = TimmFeatureBackbone('test_resnet', img_size=64)
    options = ['--cfg-options', 'train_dataloader.dataset.indices=64',
               'val_dataloader.dataset.indices=8', 'train_cfg.max_epochs=1']
    path = tmp_path / 'config.py'
    cfg = Config.fromfile(DIGITS)
    cfg.default_hooks.pop('binding', None)  # as configs of before
    cfg.dump(str(path))
    sides = []

    def note(module, inputs):
        if isinstance(module, TimmFeatureBackbone):
            sides.append(inputs[0].shape[-1])

    with nn.modules.module.register_module_forward_pre_hook(note):
        main(command, path, '--work-dir', tmp_path, *options)
    assert set(sides) == {32} and held is not None
