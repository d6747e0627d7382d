"""Each network is shown its own images, whatever else is in the process."""

import copy
import gc
import itertools
import logging
import pickle

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from mmpretrain import FeatureExtractor, get_model, inference_model
from mmpretrain.apis import ImageClassificationInferencer
from mmpretrain.registry import DATASETS, TRANSFORMS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import runs
from errors import one_line
from gap_plugin import TimmFeatureBackbone, TimmTestTransform
from gap_plugin.datasets import (
    NetworkTransform,
    bind_pipeline,
    binding,
    source_of,
)
from gap_plugin.timm_network import image_settings
from networks import full

STEPS = [dict(type='TimmTestTransform'), dict(type='PackInputs')]
IMAGE = np.zeros((70, 90, 3), np.uint8)
#: Two networks, by the side of their images.
SIDES = (32, 48)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """As in a process of its own: without the networks of other tests."""
    monkeypatch.setattr(image_settings, '_alive', {})
    init_default_scope('mmpretrain')


def network(side=32, name='test_resnet'):
    return TimmFeatureBackbone(name, img_size=side)


def shown(transform):
    """Side of the images that a transform, pipeline or dataset makes."""
    if hasattr(transform, '__getitem__'):
        return transform[0]['inputs'].shape[-1]
    return transform(dict(img=IMAGE.copy()))['img'].shape[1]


# --- a transform that nothing is said to ------------------------------------


def test_the_only_network_alive_is_followed():
    first = network(32)
    transform = TimmTestTransform()
    assert shown(transform) == 32
    again = copy.deepcopy(first)
    del first
    gc.collect()
    assert shown(transform) == shown(TimmTestTransform()) == 32
    del again
    second = network(48)  # the first is gone, and has left the record
    assert shown(transform) == second.image_size[0] == 48
    assert shown(TimmTestTransform(img_size=40)) == 40


def test_networks_of_the_same_images_count_as_one():
    sources = [network(32, name).data_source
               for name in ('resnet10t', 'resnet14t')]
    held = network(32, 'resnet10t'), network(32, 'resnet14t')
    assert sources[0] != sources[1]
    assert shown(TimmTestTransform()) == held[0].image_size[0]


def test_networks_count_as_one_in_what_matters():
    class Channels(NetworkTransform):
        def matters(self, source):
            return source.in_channels

        def transform(self, results):
            return results

    held = network(32), network(48)
    assert Channels().source().in_channels == 3
    held += (TimmFeatureBackbone('test_resnet', in_channels=1), )
    with pytest.raises(ValueError, match='networks of different images'):
        Channels().source()


def test_several_networks_are_refused_by_name():
    held = network(32), network(48, 'test_vit')
    with pytest.raises(ValueError) as info:
        shown(TimmTestTransform())
    told = one_line(info)
    for part in ("'test_resnet' at (32, 32)", "'test_vit' at (48, 48)",
                 'model_name', 'BindPipelineHook'):
        assert part in told
    assert shown(TimmTestTransform('test_resnet', img_size=40)) == 40
    del held


def test_a_network_in_a_circle_is_no_network():
    gc.disable()
    try:
        first = network(32)
        first.__dict__['itself'] = first
        second = network(48)
        del first
        assert shown(TimmTestTransform()) == second.image_size[0]
    finally:
        gc.enable()


def test_timms_defaults_are_taken_with_a_warning_until_there_is_a_network(
        caplog):
    transform = TimmTestTransform()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            assert shown(transform) == shown(transform) == 224
    finally:
        logger.removeHandler(caplog.handler)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and 'no network of timm' in told[0]
    held = network(32)
    assert shown(transform) == held.image_size[0]


def elsewhere(transform, monkeypatch):
    """What another process gets, which has no network."""
    sent = pickle.dumps(transform)
    monkeypatch.setattr(image_settings, '_alive', {})
    monkeypatch.setattr(binding, '_PROCESS', 'another')
    return pickle.loads(sent)  # noqa: S301


def test_a_worker_is_sent_the_network(monkeypatch):
    transform, held = TimmTestTransform(), network(32)
    assert shown(elsewhere(transform, monkeypatch)) == held.image_size[0]


def test_a_worker_is_sent_the_refusal(monkeypatch):
    transform = TimmTestTransform()
    held = network(32), network(48)
    sent = elsewhere(transform, monkeypatch)
    with pytest.raises(ValueError, match='networks of different images'):
        shown(sent)
    bind_pipeline(sent, held[0].data_source)
    assert shown(sent) == 32


def test_a_copy_in_the_process_asks_anew():
    """KFoldDataset copies its dataset, ahead of the model of some runners."""
    first = network(32)
    transform = copy.deepcopy(TimmTestTransform())
    del first
    held = network(48)
    assert shown(transform) == held.image_size[0]


# --- binding ----------------------------------------------------------------


class Custom:
    """A wrapper with names and containers of its own."""

    def __init__(self, dataset):
        self.branches = dict(weak=[dataset.pipeline], strong=[])
        self.samples = [dict(img=IMAGE, other=TimmTestTransform())]

    def __getitem__(self, index):
        return self.branches['weak'][0](dict(self.samples[index]))


def digits(steps=STEPS):
    return dict(type='Digits', split='test', pipeline=steps)


WRAPPERS = {
    'plain': digits(),
    'concat': dict(type='ConcatDataset', datasets=[digits(), digits()]),
    'repeat': dict(type='RepeatDataset', dataset=digits(), times=2),
    'balanced': dict(type='RepeatDataset', times=1, dataset=dict(
        type='ConcatDataset', datasets=[digits()])),
    'folds': dict(type='KFoldDataset', dataset=digits(), num_splits=3),
    'choice': digits([dict(type='RandomChoice', transforms=[
        [STEPS[0]], [STEPS[0]]]), STEPS[1]]),
    'apply': digits([dict(type='RandomApply', prob=1., transforms=[
        STEPS[0]]), STEPS[1]]),
    'mapper': digits([dict(type='KeyMapper', mapping=dict(img='img'),
                           transforms=[STEPS[0]]), STEPS[1]]),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_a_transform_is_found_wherever_it_stands(wrapper):
    held = network(32), network(48)
    dataset = DATASETS.build(WRAPPERS[wrapper])
    for each in (*held, held[0]):
        bind_pipeline(dataset, each.data_source)
        assert shown(dataset) == each.image_size[0]
        for index in range(3):
            assert dataset[-index]['inputs'].shape[-1] == each.image_size[0]


@pytest.mark.parametrize('step', [
    dict(type='MultiView', num_views=2, transforms=[[STEPS[0]]]),
    dict(type='TestTimeAug', transforms=[[STEPS[0]], [
        dict(type='RandomFlip', prob=p) for p in (1., 0.)], [STEPS[1]]])],
    ids=lambda step: step['type'])
def test_a_transform_is_found_in_what_gives_several_views(step):
    held = network(32), network(48)
    steps = Compose([TRANSFORMS.build(step)])
    bind_pipeline(steps, held[1].data_source)
    done = steps(dict(img=IMAGE))
    for view in done.get('img', done.get('inputs')):
        assert 48 in view.shape[:1] + view.shape[-1:]


def test_a_wrapper_of_ones_own_is_walked_but_its_samples_are_not():
    held = network(32), network(48)
    custom = Custom(DATASETS.build(digits()))
    bind_pipeline([custom], held[1].data_source)
    assert shown(custom) == 48
    with pytest.raises(ValueError, match='networks of different images'):
        shown(custom.samples[0]['other'])


def test_a_name_is_stronger_than_a_binding():
    transform = TimmTestTransform('test_vit')
    assert not bind_pipeline(transform, network(32).data_source)
    assert shown(transform) == 160


def test_bad_options_are_told_when_a_transform_is_bound():
    transform = TimmTestTransform(img_size=(96, 64))
    with pytest.raises(ValueError, match='square'):
        bind_pipeline(transform, network(32).data_source)


@pytest.mark.parametrize('order', ['student first', 'teacher first'])
def test_the_network_of_a_model_is_its_outermost_one(order):
    class Distiller(nn.Module):
        def __init__(self):
            super().__init__()
            if order == 'teacher first':
                self.teacher = nn.ModuleDict(dict(backbone=network(48)))
            self.backbone = network(32)
            if order == 'student first':
                self.teacher = nn.ModuleDict(dict(backbone=network(48)))

    model = Distiller()
    assert source_of(model) is model.backbone.data_source
    assert source_of(nn.ModuleDict(dict(module=model))) is (
        model.backbone.data_source)
    assert source_of(nn.Linear(1, 1)) is None


def test_two_networks_side_by_side_are_refused_or_told_apart():
    both = nn.ModuleDict(dict(student=network(32), teacher=network(48)))
    with pytest.raises(ValueError, match='different images') as info:
        source_of(both)
    assert 'student' in one_line(info) and 'teacher' in one_line(info)
    both['backbone'] = both.pop('student')
    assert source_of(both) is both['backbone'].data_source


# --- runs -------------------------------------------------------------------


class Seen(Hook):
    """Notes the side of every image that a model gets."""

    def __init__(self):
        self.sides = set()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        inputs = data_batch['inputs']
        first = inputs[0] if isinstance(inputs[0], torch.Tensor) else (
            inputs[0][0])
        self.sides.add(first.shape[-1])

    before_val_iter = before_test_iter = before_train_iter


_count = itertools.count()


def run(folder, side, kind=Runner, hooks=None, by_epoch=True, workers=0,
        spawn=False, **changes):
    """A runner, and what it notes."""

    def data(split):
        loader = runs.data(split, 16, pipeline=STEPS)
        loader.update(num_workers=workers, persistent_workers=workers > 0)
        return loader

    seen = Seen()
    length = dict(max_epochs=1) if by_epoch else dict(
        max_iters=2, val_interval=2)
    settings = dict(
        model=runs.model(img_size=side), train_dataloader=data('train'),
        val_dataloader=data('test'), test_dataloader=data('test'),
        train_cfg=dict(by_epoch=by_epoch, **length), val_cfg=dict(),
        test_cfg=dict(), val_evaluator=dict(type='Accuracy'),
        test_evaluator=dict(type='Accuracy'), optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=.05)),
        default_hooks=dict(checkpoint=None, **(hooks or dict(
            binding=dict(type='BindPipelineHook')))),
        custom_hooks=[seen], default_scope='mmpretrain',
        env_cfg=dict(mp_cfg=dict(
            mp_start_method='spawn' if spawn else 'fork')),
        randomness=dict(seed=0))
    settings.update(changes)
    return kind(work_dir=str(folder), experiment_name=f'bind_{next(_count)}',
                **settings), seen


KINDS = [Runner, FlexibleRunner]


@pytest.mark.parametrize('first', SIDES)
@pytest.mark.parametrize('kind', KINDS)
def test_two_runs_in_one_process_see_their_own_images(tmp_path, kind, first):
    runners = {side: run(tmp_path, side, kind) for side in SIDES}
    order = [first, *(side for side in SIDES if side != first)]
    for side in order:
        runners[side][0].train()
    for side in order:
        runners[side][0].test()
    for side in SIDES:
        runner, seen = runners[side]
        assert seen.sides == {side}
        assert runner.model.backbone.image_size == (side, side)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('workers, spawn', [
    full(0, False), (1, False), full(1, True)])
def test_workers_of_iterations_see_their_own_images(tmp_path, kind, workers,
                                                    spawn):
    """They are started with the loop, ahead of every hook."""
    held = network(64)
    runner, seen = run(tmp_path, 32, kind, by_epoch=False, workers=workers,
                       spawn=spawn)
    runner.train()
    assert seen.sides == {32} and held is not None


@pytest.mark.full
@pytest.mark.parametrize('kind', KINDS)
def test_spawned_workers_of_epochs_see_their_own_images(tmp_path, kind):
    held = network(64)
    runner, seen = run(tmp_path, 32, kind, workers=1, spawn=True)
    runner.train()
    assert seen.sides == {32} and held is not None


@pytest.mark.parametrize('kind, workers', [
    (Runner, 1), (FlexibleRunner, 0), full(Runner, 0),
    full(FlexibleRunner, 1)])
def test_a_config_of_before_has_no_hook_and_runs(tmp_path, kind, workers):
    runner, seen = run(tmp_path, 32, kind, hooks=dict(timer=None),
                       workers=workers)
    runner.train()
    assert seen.sides == {32}


def test_without_the_hook_other_images_are_refused(tmp_path):
    held = network(64)
    runner, seen = run(tmp_path, 32, hooks=dict(timer=None))
    with pytest.raises(ValueError, match='BindPipelineHook'):
        runner.train()
    assert not seen.sides and held is not None


def test_runs_one_after_another_need_no_hook(tmp_path):
    for side in SIDES:
        runner, seen = run(tmp_path, side, hooks=dict(timer=None))
        runner.train()
        assert seen.sides == {side}


def test_workers_that_stay_are_started_anew_for_another_network(tmp_path):
    loader = DataLoader(
        DATASETS.build(dict(digits(), indices=16)), 8, num_workers=1,
        persistent_workers=True, collate_fn=pseudo_collate)
    for side in SIDES * 2:
        runner, seen = run(tmp_path, side, train_dataloader=loader)
        runner.train()
        assert seen.sides == {side}


def test_transforms_that_come_later_are_bound(tmp_path):
    """SwitchRecipeHook puts another pipeline into the dataset."""
    held = network(64)
    runner, seen = run(tmp_path, 32, val_dataloader=None, val_cfg=None,
                       val_evaluator=None)
    runner.register_hook(dict(type='SwitchRecipeHook', schedule=[
        dict(action_epoch=1, train_pipeline=STEPS)]))
    runner.train()
    assert seen.sides == {32} and held is not None


def test_augmented_tests_see_their_own_images(tmp_path):
    held = network(64)
    flips = [dict(type='RandomFlip', prob=p) for p in (1., 0.)]
    loader = runs.data('test', 8, pipeline=[dict(
        type='TestTimeAug', transforms=[[STEPS[0]], flips, [STEPS[1]]])])
    runner, seen = run(
        tmp_path, 32, test_dataloader=loader, model=dict(
            type='AverageClsScoreTTA', module=runs.model(img_size=32)))
    runner.test()
    assert seen.sides == {32} and held is not None


# --- MMPretrain's Python interface ------------------------------------------


def api_config(side, **model):
    return Config(dict(
        model=dict(runs.model(img_size=side), **model),
        test_dataloader=dict(dataset=dict(type='CustomDataset', pipeline=[
            dict(type='LoadImageFromFile'), *STEPS]))))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    Image.fromarray(IMAGE).save(path)
    return str(path)


def sizes(model):
    """Sides of the images that a model gets from now on."""
    found = []
    model.backbone.register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0].shape[-1]))
    return found


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_the_interface_shows_each_model_its_own_images(photo, order):
    models = [get_model(api_config(side)) for side in SIDES]
    for index in order:
        found = sizes(models[index])
        inference_model(models[index], photo)
        inferencer = ImageClassificationInferencer(models[index])
        extractor = FeatureExtractor(models[index])
        get_model(api_config(64))
        inferencer(photo)
        extractor(photo)
        assert found == [SIDES[index]] * 3


def test_the_config_of_a_model_is_dumped_and_says_the_same(tmp_path):
    cfg = api_config(32)
    model = get_model(cfg)
    model._config.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(str(tmp_path / 'dumped.py'))
    held = network(48)
    steps = [TRANSFORMS.build(step)
             for step in again.test_dataloader.dataset.pipeline]
    assert shown(steps[1]) == 32 and held is not None
    assert 'network' not in cfg.test_dataloader.dataset.pipeline[1]


def test_models_may_be_given_one_config(photo):
    cfg, held = api_config(32), [get_model(api_config(s)) for s in SIDES]
    for model in held:
        model._config = cfg
    found = sizes(held[0])
    ImageClassificationInferencer(held[0])(photo)
    assert found == [SIDES[0]]


def test_a_model_of_ones_own_has_no_config():
    model = runs.digits()[0]
    assert getattr(model, '_config', None) is None


def test_a_stock_model_is_refused_where_it_is_not_alone(photo):
    cfg = api_config(32)
    cfg.model.type = 'ImageClassifier'
    cfg.model.head = dict(type='LinearHead', num_classes=2, in_channels=256)
    cfg.model.neck = dict(type='GAPNeck')
    model = get_model(cfg)
    found = sizes(model)
    FeatureExtractor(model)(photo)
    assert found == [32]
    held = network(48)
    with pytest.raises(ValueError, match='model_name'):
        FeatureExtractor(model)(photo)
    assert found == [32] and held is not None
