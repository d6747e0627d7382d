"""Checkpoints are loaded without running the code that they carry."""

import argparse
import os
import pickle
import shutil
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmpretrain import get_model
from mmpretrain.apis import ImageClassificationInferencer
from mmpretrain.registry import MODELS

import gap_plugin
from commands import last_line, python
from errors import Bomb
from gap_plugin.engine import safe_loading


def host_checkpoint(path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save(
        dict(
            state_dict=dict(weight=torch.ones(2)),
            message_hub=dict(log_scalars=dict(loss=history)),
            meta=dict(epoch=3)), path)


def test_checkpoints_of_mmengine_load(tmp_path):
    path = str(tmp_path / 'epoch_3.pth')
    host_checkpoint(path)
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
    assert checkpoint['meta'] == dict(epoch=3)
    loss = checkpoint['message_hub']['log_scalars']['loss']
    assert (loss.mean(), loss.max(), loss.current()) == (2.0, 3.0, 3.0)
    assert torch.load(path)['meta'] == dict(epoch=3)


def test_pickle_with_code_is_refused_by_mmengine_and_not_run(tmp_path):
    path, mark = str(tmp_path / 'bomb.pth'), tmp_path / 'mark'
    torch.save(dict(state_dict=dict(a=Bomb(mark))), path)
    with pytest.raises(ValueError, match='carries pickled code') as info:
        load_checkpoint(torch.nn.Linear(1, 1), path)
    assert path in str(info.value) and '\n' not in str(info.value)
    assert not mark.exists()


class Climber:
    """A pickle that asks ``getattr`` for more than statistics."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_getattr_of_checkpoints_gives_statistics_alone(tmp_path):
    path = str(tmp_path / 'climber.pth')
    torch.save(dict(a=Climber()), path)
    with pytest.raises((ValueError, pickle.UnpicklingError)) as info:
        torch.load(path)
    assert '__init__' in str(info.value)


def test_safe_loading_outlives_other_loads(tmp_path):
    path = str(tmp_path / 'epoch_3.pth')
    host_checkpoint(path)
    with torch.serialization.safe_globals([HistoryBuffer]):
        torch.load(path)
    assert torch.load(path)['meta'] == dict(epoch=3)
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_every_loader_of_mmengine_is_held_to_weights():
    loaders = CheckpointLoader._schemes
    assert {'', 'http://', 'https://'} <= set(loaders)
    assert all(hasattr(loader, '_weights_only') for loader in
               loaders.values())
    safe_loading.allow_host_checkpoints()  # a second import changes nothing
    assert CheckpointLoader._schemes == loaders


def test_loader_that_asks_for_full_unpickling_does_not_get_it(
        tmp_path, monkeypatch):
    path, mark = str(tmp_path / 'bomb.pth'), tmp_path / 'mark'
    torch.save(Bomb(mark), path)
    # what must not be got by asking for it
    loader = safe_loading._weights_only(
        lambda name, _: torch.load(name, weights_only=False))
    for forbid in (False, True):  # torch's own way back to full unpickling
        if forbid:
            monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
        with pytest.raises(ValueError, match='carries pickled code'):
            loader(path, 'cpu')
    assert not mark.exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'


@pytest.fixture
def bomb(tmp_path):
    """A checkpoint that carries code, and the file that it would make."""
    mark = tmp_path / 'mark'
    torch.save(dict(state_dict={}, meta={}, bomb=Bomb(mark)),
               tmp_path / 'bomb.pth')
    yield tmp_path / 'bomb.pth'
    assert not mark.exists()


@pytest.fixture
def url(bomb, monkeypatch):
    """The same, behind a web server."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(bomb.parent))
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message',
                        lambda *_: None)
    monkeypatch.setenv('TORCH_HOME', str(bomb.parent / 'torch'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/bomb.pth'
        server.shutdown()


class Bucket:
    """A client of object storage."""

    content = b''

    def __init__(self, **_):
        pass

    def get(self, name):
        return self.content


SCHEMES = {
    '': '{path}',
    'http://': '{url}',
    'https://': '{url}',  # the same loader: no certificate here
    'torchvision://': 'torchvision://bomb',
    'modelzoo://': 'modelzoo://bomb',
    'mmcls://': 'mmcls://bomb',
    'openmmlab://': 'openmmlab://bomb',
    'open-mmlab://': 'open-mmlab://bomb',
    'pavi://': 'pavi://bomb',
    r'(\S+\:)?s3://': 's3://bucket/bomb.pth',
    r'(\S+\:)?petrel://': 'petrel://bucket/bomb.pth',
}


def test_every_scheme_is_tried():
    assert set(SCHEMES) == set(CheckpointLoader._schemes)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_code_is_refused_by_every_scheme(scheme, bomb, url, monkeypatch):
    from mmengine.fileio import backends
    from mmengine.runner import checkpoint
    for models in ('torchvision', 'mmcls', 'external'):
        monkeypatch.setattr(checkpoint, f'get_{models}_models',
                            lambda: dict(bomb=url))
    monkeypatch.setitem(backends.backends, 'petrel', Bucket)
    monkeypatch.setattr(Bucket, 'content', bomb.read_bytes())
    cloud = SimpleNamespace(get=lambda _: SimpleNamespace(
        name='bomb.pth', download=partial(shutil.copy, bomb)))
    monkeypatch.setitem(sys.modules, 'pavi',
                        SimpleNamespace(modelcloud=cloud))
    name = SCHEMES[scheme].format(path=bomb, url=url)
    loader = CheckpointLoader._schemes[scheme]
    with pytest.raises(ValueError, match='carries pickled code'):
        loader(name, map_location='cpu')


def test_a_file_address_is_not_opened(bomb):
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint(f'file://{bomb}', 'cpu')


def runner(tmp_path, **settings):
    model = dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name='test_resnet'),
        neck=dict(type='GAPNeck'),
        head=dict(type='LinearHead', num_classes=2))
    return Runner(
        model, str(tmp_path / 'w'), default_scope='mmpretrain',
        train_dataloader=dict(
            batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='Digits', split='train', pipeline=[])),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        experiment_name=f'bomb_{time.monotonic_ns()}', **settings)


@pytest.mark.parametrize('way', [
    'load_from', 'resume', 'ema', 'init_cfg', 'get_model', 'inferencer'])
def test_code_is_refused_on_every_way_into_a_model(way, bomb, tmp_path):
    path = str(bomb)
    ema = [dict(type='EMAHook')]
    with pytest.raises(ValueError, match='carries pickled code'):
        if way == 'load_from':
            runner(tmp_path, load_from=path).train()
        elif way in ('resume', 'ema'):
            runner(tmp_path, load_from=path, resume=True,
                   custom_hooks=ema if way == 'ema' else None).train()
        else:
            init_default_scope('mmpretrain')
            cfg = Config(dict(model=dict(
                type='ImageClassifier',
                backbone=dict(type='TimmFeatureBackbone',
                              model_name='test_resnet')),
                test_dataloader=dict(dataset=dict(pipeline=[]))))
            if way == 'init_cfg':
                cfg.model.backbone.init_cfg = dict(type='Pretrained',
                                                   checkpoint=path)
                MODELS.build(cfg.model).init_weights()
            elif way == 'get_model':
                get_model(cfg, pretrained=path)
            else:
                ImageClassificationInferencer(cfg, pretrained=path)


def test_classes_of_ones_own_are_allowed_by_name(tmp_path):
    path = str(tmp_path / 'timm.pth')
    torch.save(dict(state_dict={}, args=argparse.Namespace(lr=0.1)), path)
    with pytest.raises(ValueError, match='Namespace.*allow_classes'):
        CheckpointLoader.load_checkpoint(path, 'cpu')
    code = tmp_path / 'code.py'
    code.write_text(f"""if True:
        import gap_plugin
        from mmengine.runner import CheckpointLoader
        gap_plugin.allow_classes('argparse.Namespace')
        for _ in range(2):  # MMEngine's context takes bare classes away
            done = CheckpointLoader.load_checkpoint({path!r}, 'cpu')
        print(done['args'].lr)""")
    assert last_line(python(code)) == '0.1'


def test_a_class_is_allowed_by_the_name_that_people_use(tmp_path):
    path = str(tmp_path / 'config.pth')
    torch.save(dict(state_dict={}, cfg=Config(dict(a=1))._cfg_dict), path)
    code = tmp_path / 'code.py'
    code.write_text(f"""if True:
        import gap_plugin, torch
        gap_plugin.allow_classes('mmengine.ConfigDict')
        print(torch.load({path!r})['cfg'].a)""")
    assert last_line(python(code)) == '1'


@pytest.mark.parametrize('name', ['Namespace', 'argparse.Nothing',
                                  'no_such_module.Class', ''])
def test_a_class_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match='there is no class') as info:
        gap_plugin.allow_classes(name)
    assert repr(name) in str(info.value) and '\n' not in str(info.value)


def test_functions_are_not_allowed():
    with pytest.raises(TypeError, match='os.system.*no class'):
        gap_plugin.allow_classes('os.system')
