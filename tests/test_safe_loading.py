"""Checkpoints are loaded without running the code that they carry."""

import argparse
import io
import os
import pickle
import re
import shutil
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter, OrderedDict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.optim import scheduler as param_scheduler
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.structures import LabelData
from mmpretrain import get_model
from mmpretrain.apis import ImageClassificationInferencer
from mmpretrain.registry import MODELS

import gap_plugin
import runs
from commands import last_line, python
from errors import Bomb, one_line
from gap_plugin.checkpoint_files import read_checkpoint_file
from gap_plugin.engine import safe_loading
from networks import full


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


# --- what checkpoints hold ---------------------------------------------------


def optimizer(kind, **settings):
    """State of an optimizer that has stepped."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    found = kind([weight], lr=0.1, **settings)
    found.step()
    return found


def scheduler(kind, **settings):
    found = kind(optimizer(torch.optim.SGD, momentum=0.9), **settings)
    found.step()
    return found.state_dict()


def hub():
    """A message hub with numbers of each kind."""
    found = MessageHub(f'hub_{time.monotonic_ns()}')
    for value in (1, 1., np.float32(1), np.int64(1), torch.tensor(1.)):
        found.update_scalar('train/loss', value)
    for kind in 'bBhHiIlLefdgFDG?':
        found.update_info(f'number/{kind}', np.ones((), kind)[()])
        found.update_info(f'numbers/{kind}', np.ones((2, 3), kind))
    found.update_info('swapped', np.arange(3, dtype='>i4'))
    found.update_info('columns', np.asfortranarray(np.eye(3)[:2]))
    found.update_info('none', np.zeros((0, 4)))
    found.update_info('point', np.array(2.))
    found.update_info('names', np.array(['a', 'bcd']))
    found.update_info('name', np.str_('zebra'))
    found.update_info('bytes', np.bytes_(b'zebra'))
    return found.state_dict()


HELD = {
    'message hub': hub,
    'history without entries': lambda: HistoryBuffer([], []),
    'sgd': lambda: OptimWrapper(
        optimizer(torch.optim.SGD, momentum=0.9)).state_dict(),
    'adamw': lambda: OptimWrapper(optimizer(
        torch.optim.AdamW, amsgrad=True)).state_dict(),
    'bfloat16': lambda: gap_plugin.Bfloat16OptimWrapper(
        optimizer=optimizer(torch.optim.SGD)).state_dict(),
    'one cycle, in lines': lambda: scheduler(
        param_scheduler.OneCycleLR, eta_max=1., total_steps=5,
        anneal_strategy='linear'),
    'several optimizers': lambda: OptimWrapperDict(a=OptimWrapper(
        optimizer(torch.optim.Adam))).state_dict(),
    'loss scaler': lambda: dict(
        loss_scaler=dict(scale=65536., growth_factor=2., _growth_tracker=0)),
    'steps': lambda: scheduler(
        param_scheduler.MultiStepLR, milestones=[3, 3, 8]),
    'cosine': lambda: scheduler(
        param_scheduler.CosineAnnealingLR, T_max=3, by_epoch=False),
    'one cycle': lambda: scheduler(
        param_scheduler.OneCycleLR, eta_max=1., total_steps=5),
    'poly': lambda: scheduler(param_scheduler.PolyLR),
    'warmup': lambda: scheduler(param_scheduler.LinearLR),
    'momentum': lambda: scheduler(param_scheduler.LinearMomentum),
    'settings': lambda: Config(dict(palette=dict(a=[1, 2])))._cfg_dict,
    'containers': lambda: dict(
        a=OrderedDict(b=(1, [2.5, None])), c=Counter('aab'), d={1, 2},
        e=slice(1, 2), f=1j, g=bytearray(b'a'), h=b'\xff', i=torch.Size([1]),
        j=torch.device('cpu'), k=torch.float16),
    'tensors': lambda: [
        torch.nn.Parameter(torch.ones(2)), torch.ones(2).bfloat16(),
        torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64)],
}


def same(found, held):
    """Whether two things hold the same values, of the same kinds."""
    if isinstance(held, dict):
        return [*found] == [*held] and all(
            same(found[key], held[key]) for key in held)
    if isinstance(held, (list, tuple)):
        return len(found) == len(held) and all(map(same, found, held))
    if isinstance(held, HistoryBuffer):
        return all(map(same, found.data, held.data)) and (
            not len(held.data[0]) or found.statistics('mean') == held.mean())
    if torch.is_tensor(held):
        return found.dtype == held.dtype and torch.equal(
            found.to_dense(), held.to_dense())
    if isinstance(held, np.ndarray):
        return (isinstance(found, np.ndarray)
                and found.dtype.newbyteorder('=')
                == held.dtype.newbyteorder('=')
                and found.shape == held.shape and (found == held).all()
                and found.flags.f_contiguous == held.flags.f_contiguous)
    return type(found) is type(held) and found == held


@pytest.mark.parametrize('name', HELD)
def test_what_hosts_write_is_read_and_written_again(name, tmp_path):
    first, second = str(tmp_path / 'first.pth'), str(tmp_path / 'second.pth')
    held = HELD[name]()
    torch.save(held, first, _use_new_zipfile_serialization=name != 'sgd')
    found = CheckpointLoader.load_checkpoint(first)
    assert same(found, held)
    torch.save(found, second)  # by a run that goes on
    assert b'gap_plugin' not in Path(second).read_bytes()
    assert same(torch.load(second), held)


@pytest.mark.parametrize('way', [
    'resume', 'ema', full('schedules')])
def test_runs_go_on_from_what_runners_write(way, tmp_path):
    changes = dict(
        resume={},
        ema=dict(custom_hooks=[dict(type='EMAHook')]),
        schedules=dict(param_scheduler=[
            dict(type='LinearLR', by_epoch=False, end=2),
            dict(type='ReduceOnPlateauLR', monitor='loss')]))[way]
    for epochs in (1, 2):
        run = runs.runner(tmp_path, epochs, resume=True, **changes)
        run.train()
    made = CheckpointLoader.load_checkpoint(str(tmp_path / 'epoch_2.pth'))
    assert made['meta']['epoch'] == 2
    assert ('ema_state_dict' in made) is (way == 'ema')


# --- what a crafted pickle may ask for ---------------------------------------


class Asks:
    """A pickle that calls what it names, and gives a state to the result."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


CORE = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
F8 = np.dtype('f8')
BYTES = b'A' * 64
#: The state of a dtype whose flags say that it holds objects.
OBJECTS = 3, '|', None, None, None, 8, 8, 63


def array(dtype, shape=(8, ), raw=BYTES):
    return Asks(CORE[0], (np.ndarray, (0, ), b'b'),
                (1, shape, dtype, False, raw))


def dtype(*args, state=None):
    return Asks(np.dtype, args, *([state] if state else []))


def pickled(*parts):
    """Opcodes, and between them values."""
    return b'\x80\x02' + b''.join(
        part if isinstance(part, bytes) else pickle.dumps(part, 2)[2:-1]
        for part in parts) + b'.'


#: An array that is filled again, so that what has its memory is left alone.
SHORTER = 1, (1, ), F8, False, b'A' * 8
TENSOR = (b'ctorch._utils\n_rebuild_device_tensor_from_numpy\n'
          b'(h\xf0ctorch\nfloat64\nX\x03\x00\x00\x00cpu\x89tR')

CRAFTED = {
    'objects': array(dtype('O')),
    'objects, with state': array(dtype('O8', False, True, state=OBJECTS)),
    'objects, listed': array(np.dtype('O'), (1, ), [1]),
    'objects by call': Asks(np.ndarray, ((8, ), 'O', BYTES)),
    'objects by new': pickled(np.ndarray, ((8, ), 'O', BYTES), b'\x81'),
    'empty of objects': Asks(np.ndarray, ((8, ), 'O')),
    'object scalar': Asks(CORE[1], (dtype('O'), BYTES[:8])),
    'flags of objects in a copy': array(
        dtype('V8', False, True, state=OBJECTS)),
    'fields in a state': array(dtype('f8', False, True, state=(
        3, '|', None, ('a', ), {'a': (F8, 0)}, 8, 1, 27))),
    'fields in a list': array(dtype([('a', 'O')])),
    'fields in a text': array(dtype('O,O')),
    'fields in a dict': array(dtype(dict(names=['a'], formats=['O']))),
    'an array in a state': array(dtype('f8', False, True, state=(
        3, '|', (F8, (8, )), None, None, 64, 1, 0))),
    'void': array(dtype('V8')),
    'dtype of a class': Asks(np.dtypes.ObjectDType, ()),
    'dtype without a letter': pickled(np.dtype, b')\x81'),
    'a negative shape': array(F8, (-8, )),
    'two of them': array(F8, (-2, -4)),
    'a huge shape': array(F8, (1 << 62, )),
    'overflowing to none': array(F8, (1 << 32, 1 << 32), b''),
    'huge and empty': array(F8, (0, 1 << 62, 1 << 62), b''),
    'beyond an integer': array(F8, (10**40, 0), b''),
    'a hundred axes': array(F8, (1, ) * 100, BYTES[:8]),
    'more than its data': array(F8, (800, )),
    'data that is a list': array(F8, (8, ), [1] * 8),
    'strides': Asks(np.ndarray, ((8, ), F8, BYTES, 0, (1 << 20, ))),
    'another class': Asks(CORE[0], (np.matrix, (0, ), b'b'),
                          (1, (8, ), F8, False, BYTES)),
    'a short scalar': Asks(CORE[1], (F8, b'A')),
    'text of no characters': Asks(CORE[1], (np.dtype('U2'), b'\xff' * 8)),
    'a state of one': Asks(CORE[0], (np.ndarray, (0, ), b'b'), (1, )),
    'filled twice': pickled(np.ones(8), SHORTER, b'b'),
    'memory of a tensor': pickled(b'(', np.ones(1 << 20), b'q\xf0', TENSOR,
                                  b'h\xf0', SHORTER, b'bt'),
    'more than statistics': Asks(getattr, (HistoryBuffer, '__init__')),
    'bytes': Asks(bytes, (1 << 40, )),
}


def test_crafted_numbers_are_refused_in_one_line_and_crash_nothing(tmp_path):
    for name, content in CRAFTED.items():
        path = tmp_path / f'{name}.pth'
        if isinstance(content, bytes):
            with zipfile.ZipFile(path, 'w') as archive:
                archive.writestr('a/data.pkl', content)
                archive.writestr('a/version', '3')
        else:
            torch.save([content], path)
    code = tmp_path / 'code.py'
    code.write_text(f"""if True:
        from pathlib import Path
        import gap_plugin
        from mmengine.runner import CheckpointLoader
        for path in sorted(Path({str(tmp_path)!r}).glob('*.pth')):
            try:
                print(CheckpointLoader.load_checkpoint(str(path)))
            except ValueError as error:
                text = str(error)
                if text.isprintable() and 'weights_only' not in text:
                    print('refused:', path.stem)""")
    told = python(code)
    assert set(re.findall('refused: (.*)', told)) == set(CRAFTED), told


def tar(path):
    """Torch's format of 2016."""
    with tarfile.open(path, 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            archive.addfile(tarfile.TarInfo(name))


def long_header(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(
        descr='<f8', fortran_order=False, shape=(10**12, )))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', header.getvalue())


#: How a file is written -> its suffix, what is said of it
REFUSED = {
    'tar': ('.tar', tar, 'a tar archive, which torch reads with the code'),
    'script': ('.pt', lambda path: torch.jit.save(torch.jit.trace(
        torch.nn.Linear(1, 1), torch.ones(1, 1)), path),
        'a TorchScript archive, which torch reads with the code'),
    'empty': ('.pth', lambda path: path.touch(), 'is empty'),
    'text': ('.pth', lambda path: path.write_text('<!doctype html>\n<html>'),
             "cannot be read (it begins with the text '<!doctype html>')"),
    'zeros': ('.pth', lambda path: path.write_bytes(bytes(9999)),
              'cannot be read'),
    'noise': ('.bin', lambda path: path.write_bytes(bytes(range(256))),
              'cannot be read'),
    'cut': ('.pth', lambda path: (torch.save(torch.ones(999), path),
                                  os.truncate(path, 2000)), 'cannot be read'),
    'another zip': ('.pth', lambda path: zipfile.ZipFile(
        path, 'w').close(), 'cannot be read'),
    'newer pickle': ('.pth', lambda path: path.write_bytes(
        pickle.dumps(dict(a=1), 5)), 'it is no pickle of protocol 2'),
    'code': ('.pth', lambda path: torch.save(Bomb(path), path),
             f'carries pickled code, which is not run (it asks for {os.name}'),
    'class': ('.pth', lambda path: torch.save(argparse.Namespace(), path),
              '(it asks for argparse.Namespace): save its weights alone'),
    'objects': ('.npz', lambda path: np.savez(path, a=np.array([None])),
                'carries pickled code, which is not run (a.npy holds objects'),
    'long header': ('.npz', long_header, 'a.npy is shorter than its header'),
    'no npz': ('.npz', lambda path: path.write_bytes(b'x'), 'cannot be read'),
    'no safetensors': ('.safetensors', lambda path: path.write_bytes(
        b'\xff' * 99), 'cannot be read'),
}


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
@pytest.mark.parametrize('way', ['checkpoint_path', 'checkpoint'])
@pytest.mark.parametrize('name', REFUSED)
def test_every_refusal_is_one_line_of_ours(name, way, tmp_path, monkeypatch):
    suffix, write, told = REFUSED[name]
    path = tmp_path / f'file{suffix}'
    write(path)
    monkeypatch.setattr(np, 'load', lambda *_, **__: pytest.fail('allocates'))
    with pytest.raises(ValueError) as info:
        if way == 'checkpoint':
            CheckpointLoader.load_checkpoint(str(path))
        else:
            gap_plugin.TimmFeatureBackbone('test_resnet',
                                           checkpoint_path=str(path))
    text = one_line(info)
    assert text.startswith(f'{way} {str(path)!r} ') and told in text
    assert not re.search('weights_only|copy it again', text)


def test_code_in_an_open_file_is_refused(tmp_path):
    REFUSED['script'][1](tmp_path / 'a.pt')
    content = io.BytesIO((tmp_path / 'a.pt').read_bytes())
    with pytest.raises(ValueError, match='a TorchScript archive'):
        read_checkpoint_file(content, told='s3://a.pt')
    torch.save(torch.ones(1), content := io.BytesIO())
    content.seek(0)
    assert read_checkpoint_file(content, told='s3://a.pt') == 1


def test_an_npz_is_read_as_tensors(tmp_path):
    np.savez(tmp_path / 'a.npz', a=np.ones((2, 3)), b=np.array(1))
    np.savez_compressed(tmp_path / 'b.npz', a=np.ones((2, 3)), b=np.array(1))
    for name in ('a.npz', 'b.npz'):
        found = CheckpointLoader.load_checkpoint(str(tmp_path / name))
        assert found['a'].tolist() == [[1] * 3] * 2 and found['b'] == 1


def test_getattr_of_checkpoints_gives_statistics_alone(tmp_path):
    path = str(tmp_path / 'climber.pth')
    torch.save(dict(a=CRAFTED['more than statistics']), path)
    with pytest.raises(pickle.UnpicklingError, match='__init__'):
        torch.load(path)


def test_safe_loading_outlives_other_loads(tmp_path):
    path = str(tmp_path / 'epoch_3.pth')
    host_checkpoint(path)
    with torch.serialization.safe_globals([HistoryBuffer]):
        torch.load(path)
    assert torch.load(path)['meta'] == dict(epoch=3)
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_every_loader_of_mmengine_is_ours():
    loaders = CheckpointLoader._schemes
    assert {'', 'http://', 'https://'} <= set(loaders)
    assert {loader.__module__ for loader in
            loaders.values()} == {safe_loading.__name__}
    safe_loading.allow_host_checkpoints()  # a second import changes nothing
    assert CheckpointLoader._schemes == loaders


def test_a_loader_of_a_users_own_stays(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes',
                        {**CheckpointLoader._schemes})
    CheckpointLoader.register_scheme('own://', str)
    CheckpointLoader.register_scheme('pavi://', str, force=True)
    safe_loading.allow_host_checkpoints()
    assert CheckpointLoader._schemes['own://'] is str
    assert CheckpointLoader._schemes['pavi://'] is str


def test_full_unpickling_that_a_user_asks_for_is_obeyed_and_said(
        tmp_path, monkeypatch):
    path, mark = str(tmp_path / 'bomb.pth'), tmp_path / 'mark'
    torch.save(Bomb(mark), path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.warns(UserWarning, match='bomb.pth.* unpickled in full'):
        CheckpointLoader.load_checkpoint(path)
    assert mark.exists()
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(ValueError, match='unset one'):
        CheckpointLoader.load_checkpoint(path)


def test_a_load_leaves_the_environment_alone(tmp_path, monkeypatch):
    path = str(tmp_path / 'epoch_3.pth')
    host_checkpoint(path)

    def no_change(*_):
        pytest.fail('other threads see it')

    with monkeypatch.context() as patch:
        patch.setattr(type(os.environ), '__setitem__', no_change)
        patch.setattr(type(os.environ), '__delitem__', no_change)
        assert CheckpointLoader.load_checkpoint(path)['meta']['epoch'] == 3


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
    path = str(tmp_path / 'label.pth')
    torch.save(dict(state_dict={}, found=LabelData(item=1)), path)
    code = tmp_path / 'code.py'
    code.write_text(f"""if True:
        import gap_plugin, torch
        gap_plugin.allow_classes('mmengine.structures.LabelData')
        print(torch.load({path!r})['found'].item)""")
    assert last_line(python(code)) == '1'


@pytest.mark.parametrize('name', ['Namespace', 'argparse.Nothing',
                                  'no_such_module.Class', ''])
def test_a_class_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match='there is no class') as info:
        gap_plugin.allow_classes(name)
    assert repr(name) in str(info.value) and '\n' not in str(info.value)


@pytest.mark.parametrize('given', ['os.system', dict])
def test_only_names_of_classes_are_allowed(given):
    with pytest.raises(TypeError, match='os.system.*no class|full names'):
        gap_plugin.allow_classes(given)


def test_what_stands_in_is_not_replaced_by_name(tmp_path):
    gap_plugin.allow_classes('numpy.dtype', 'numpy.ndarray')
    torch.save(CRAFTED['objects'], tmp_path / 'o.pth')
    with pytest.raises(ValueError, match="the dtype 'O'"):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'o.pth'))
