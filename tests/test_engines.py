"""What runs the network of a pass: the same features, or not at all."""

import json
import re
import tempfile
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from commands import DIGITS, OURS, last_line, python
from errors import one_line
from gap_plugin.engine.device import autocast
from gap_plugin.features import (
    ENGINES,
    Extraction,
    FeatureStore,
    FixedPart,
    StoreWriter,
    engines,
    extract,
    fastest,
    store_writer,
)
from networks import full
from runs import digits


class Small(nn.Module):
    """A convolution, a norm, and the mean of the map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images):
        return self.norm(self.conv(images)).relu().mean((2, 3))


def images(count=20):
    return torch.randn(count, 3, 16, 16,
                       generator=torch.Generator().manual_seed(0))


@pytest.fixture
def export_pays(monkeypatch):
    monkeypatch.setattr(engines, 'EXPORT_PAYS', 0.)
    # what is timed depends on the machine, and Small is too small to tell
    monkeypatch.setattr(engines, '_seconds', lambda engine, _:
                        0. if 'onnxruntime' in engine.name else 1.)


@pytest.mark.parametrize('engine', [
    'torch', 'auto', 'onnxruntime', full('compile')])
def test_an_engine_gives_what_eager_torch_gives(engine, export_pays):
    module, x = Small().train(), images(47)
    before = {k: (v.clone(), v.stride())
              for k, v in module.state_dict().items()}
    run = fastest(module, x[:20], engine=engine)
    assert run.name.split()[0] == ('onnxruntime' if engine == 'auto'
                                   else engine)
    with torch.no_grad():
        wanted = module.eval()(x)
    for count in (20, 7, 1, 47):  # the last batch has fewer, some more
        found = run(x[:count])
        assert found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found, wanted[:count], rtol=1e-5,
                                   atol=1e-6)
    for name, (value, stride) in before.items():  # the module is as it was
        torch.testing.assert_close(module.state_dict()[name], value,
                                   rtol=0, atol=0)
        assert module.state_dict()[name].stride() == stride


class Images:
    """What stands for a batch of 2 on some device."""

    def __init__(self, device):
        self.device = torch.device(device)

    def __len__(self):
        return 2

    def __getitem__(self, few):
        return self


@pytest.mark.parametrize('count, torch_s, onnx_s, amp, device, wanted', [
    (None, 1., .9, False, 'cpu', 'onnxruntime'),
    (1000, .05, .01, False, 'cpu', 'onnxruntime'),
    (1000, .05, .06, False, 'cpu', 'channels_last'),  # exported for nothing
    (100, .05, None, False, 'cpu', 'channels_last'),
    (None, 1., None, True, 'cpu', 'channels_last'),
    (1000, .05, None, False, 'cuda', 'channels_last'),
    (1_000_000, .001, None, True, 'cuda', 'compile'),
    (None, 1., None, False, 'mps', 'channels_last')])
def test_auto_is_the_fastest_that_pays(count, torch_s, onnx_s, amp, device,
                                       wanted, monkeypatch):
    """Nothing is exported where that takes longer than it may save."""
    made = []
    for kind in ('channels_last', 'compile', 'onnxruntime'):
        monkeypatch.setitem(engines._MAKERS, kind, lambda *_, kind=kind: (
            made.append(kind), engines.Engine(kind, lambda _: torch.zeros(2)))
            [1])
    monkeypatch.setattr(engines, '_mixed', lambda *_: lambda _: torch.zeros(2))
    monkeypatch.setattr(engines, '_allowed', lambda *_: 0.)
    seconds = dict(channels_last=torch_s, onnxruntime=onnx_s)
    monkeypatch.setattr(engines, '_seconds', lambda engine, few:
                        len(few) * seconds[engine.name])
    images = Images(device)
    assert fastest(Small(), images, amp=amp, count=count).name == wanted
    assert ('onnxruntime' in made) == (onnx_s is not None)
    made.clear()
    monkeypatch.setattr(engines, '_installed', lambda: False)
    assert fastest(Small(), images, amp=amp, count=count).name == (
        'channels_last' if wanted == 'onnxruntime' else wanted)
    assert 'onnxruntime' not in made


def test_what_cannot_be_compiled_is_run_by_the_next_best(monkeypatch):
    def fails(*_):
        raise RuntimeError('no compiler')

    monkeypatch.setitem(engines._MAKERS, 'compile', fails)
    monkeypatch.setitem(engines._MAKERS, 'channels_last', lambda *_:
                        engines.Engine('next', lambda _: torch.zeros(2)))
    monkeypatch.setattr(engines, '_mixed', lambda *_: lambda _: torch.zeros(2))
    monkeypatch.setattr(engines, '_allowed', lambda *_: 0.)
    with pytest.warns(UserWarning, match='no compiler; next runs it'):
        assert fastest(Small(), Images('cuda')).name == 'next'


def test_a_store_of_two_engines_is_of_neither():
    mixed = 'onnxruntime 1.32.0, torch channels_last'
    assert [engines.is_of(mixed, asked) for asked in (
        'auto', 'onnxruntime', 'torch')] == [True, False, False]
    assert engines.is_of('onnxruntime 1.31.0, onnxruntime 1.32.0',
                         'onnxruntime')


def test_images_of_another_size_are_run_all_the_same():
    module = Small()
    run = fastest(module, images(2), engine='onnxruntime')
    larger = torch.nn.functional.pad(images(1), (0, 5))
    with pytest.warns(UserWarning, match='another size.*eager torch'):
        found = run(larger)
    assert torch.equal(found, fastest(module, larger, engine='torch')(larger))


class Wrong(Small):
    """One that is something else in another memory layout, or exported."""

    def forward(self, images):
        off = torch.onnx.is_in_onnx_export() or images.is_contiguous(
            memory_format=torch.channels_last)
        return super().forward(images) * (1.001 if off else 1)


class NotExported(Small):
    """One whose output depends on Python."""

    def forward(self, images):
        found = super().forward(images)
        return found * (2 if float(found.sum()) > 1e9 else 1)


@pytest.mark.parametrize('module, engine, why, instead', [
    (Wrong, 'channels_last', r'differ from those of eager torch by 1\.0e-03 '
     r'of the largest, 1\.0e-04 is allowed', 'torch'),
    (NotExported, 'onnxruntime', 'cannot export this to ONNX',
     'torch channels_last')])
def test_what_gives_something_else_is_told_and_not_used(
        module, engine, why, instead, monkeypatch, capfd):
    module, x = module(), images()
    with pytest.warns(UserWarning, match=f'{engine} .*{why}.*; {instead} '
                      'runs it') as told:
        run = fastest(module, x, count=None if engine == 'onnxruntime' else 1)
    assert len(told) == 1 and '\n' not in str(told[0].message)
    assert run.name == instead
    with torch.no_grad():
        torch.testing.assert_close(run(x), module.eval()(x))
    assert capfd.readouterr() == ('', '')  # no page of torch's graph


def test_a_named_engine_that_fails_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match='onnxruntime .*cannot export.*use '
                       "engine='torch'") as error:
        fastest(NotExported(), images(), engine='onnxruntime')
    one_line(error)
    with pytest.raises(ValueError, match='onnxruntime .*leave amp out'):
        fastest(Small(), images(), engine='onnxruntime', amp=True)
    with pytest.raises(ValueError, match="engine='tpu' must be one of auto"):
        fastest(Small(), images(), engine='tpu')
    monkeypatch.setitem(engines._MAKERS, 'compile', lambda module, *_:
                        engines.Engine('compile', lambda x: module(x) * 1.01))
    with pytest.raises(ValueError, match=r'compile .*by 1\.0e-02'):
        fastest(Small(), images(), engine='compile')


def test_mixed_precision_is_held_to_its_own_rounding(monkeypatch):
    module, x = Small(), images()
    run = fastest(module, x, amp=True)
    assert run.name == 'torch channels_last'
    with torch.no_grad(), autocast(x.device, True):
        wanted = module.eval()(x).float()
    assert run(x).dtype == torch.float32
    assert engines._difference(run(x), wanted) < .02
    assert engines._difference(run(x), wanted) != engines._difference(
        run(x), module(x).detach())  # it is bfloat16
    monkeypatch.setitem(engines._MAKERS, 'channels_last', lambda module, *_:
                        engines.Engine('x', lambda x: module(x) * 1.05))
    with pytest.warns(UserWarning, match='5.*e-02 of the largest'):
        assert fastest(module, x, amp=True).name == 'torch'


def test_a_gpu_computes_in_bfloat16_where_it_can(monkeypatch):
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported',
                            lambda s=supported, **_: s)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # there is no GPU
            assert autocast(torch.device('cuda'), True).fast_dtype == dtype


def test_what_is_not_installed_is_told(monkeypatch):
    from gap_plugin.export import onnx
    monkeypatch.setattr(engines, 'EXPORT_PAYS', 0.)
    real = onnx.__builtins__['__import__']
    monkeypatch.setitem(onnx.__builtins__, '__import__', lambda name, *a, **k:
                        real('_no_onnx' if name == 'onnx' else name, *a, **k))
    with pytest.raises(ImportError, match=r'gap_plugin\[export\]') as error:
        fastest(Small(), images(), engine='onnxruntime')
    one_line(error)
    with pytest.warns(UserWarning, match=r'gap_plugin\[export\]'):
        assert fastest(Small(), images()).name == 'torch channels_last'


def test_no_file_of_an_export_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    fastest(Small(), images(), engine='onnxruntime')
    assert not [p for p in tmp_path.rglob('*') if '.onnx' in p.name]
    with pytest.raises(ValueError, match='cannot export'):
        fastest(NotExported(), images(), engine='onnxruntime')
    assert not [p for p in tmp_path.rglob('*') if '.onnx' in p.name]


def test_onnxruntime_computes_with_as_many_threads_as_torch(monkeypatch):
    from gap_plugin.export import onnx
    given, opened = [], onnx.session
    monkeypatch.setattr(onnx, 'session', lambda model, name, threads: (
        given.append(threads), opened(model, name, threads))[1])
    fastest(Small(), images(), engine='onnxruntime')
    assert given == [torch.get_num_threads()]


# -- in a pass ---------------------------------------------------------------

FEW = {'train_dataloader.dataset.indices': 40,
       'val_dataloader.dataset.indices': 21,
       'test_dataloader.batch_size': 16}


def test_features_of_engines_are_the_same_and_say_whose(tmp_path,
                                                        export_pays):
    stores = {engine: extract(*digits(FEW), 'val', tmp_path / engine,
                              engine=engine)
              for engine in ('torch', 'auto')}
    import onnxruntime
    assert {k: s.fingerprint['engine'] for k, s in stores.items()} == dict(
        torch='torch', auto=f'onnxruntime {onnxruntime.__version__}')
    wanted = stores['torch'].features
    np.testing.assert_allclose(stores['auto'].features, wanted, rtol=0,
                               atol=1e-4 * np.abs(wanted).max())


def test_a_store_of_another_engine_is_told(tmp_path, monkeypatch):
    model, cfg = digits(FEW)
    folder = tmp_path / 'val'
    extract(model, cfg, 'val', folder)
    assert FeatureStore(folder).fingerprint['engine'] == 'torch channels_last'
    monkeypatch.setattr(FixedPart, 'forward', lambda *_: pytest.fail('pass'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        extract(model, cfg, 'val', folder)
    with pytest.warns(UserWarning, match=r'is used as it is: .*\(engine torch '
                      r'channels_last against torch now\) beyond'):
        extract(model, cfg, 'val', folder, engine='torch')
    monkeypatch.undo()
    # by force, what was asked for
    extract(model, cfg, 'val', folder, engine='torch', force=True)
    assert FeatureStore(folder).fingerprint['engine'] == 'torch'
    monkeypatch.setattr(FixedPart, 'forward', lambda *_: pytest.fail('pass'))
    extract(model, cfg, 'val', folder, force=True)  # as it may be
    # a store of before says nothing of it: it was eager torch
    path = folder / 'store.json'
    made = json.loads(path.read_text())
    del made['fingerprint']['engine']
    path.write_text(json.dumps(made))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        extract(model, cfg, 'val', folder, engine='torch')
        extract(model, cfg, 'val', folder)
    with pytest.warns(UserWarning, match='engine None against onnxruntime'):
        extract(model, cfg, 'val', folder, engine='onnxruntime')


def test_half_of_a_store_says_both_engines(tmp_path, monkeypatch):
    written, write = [], StoreWriter.write

    def once(self, *args, **kwargs):
        if written:
            raise KeyboardInterrupt
        written.append(write(self, *args, **kwargs))
    monkeypatch.setattr(StoreWriter, 'write', once)
    with pytest.raises(KeyboardInterrupt):
        extract(*digits(FEW), 'val', tmp_path / 'val', engine='torch')
    monkeypatch.undo()
    with pytest.warns(UserWarning, match='goes on with another engine: torch '
                      'channels_last after torch'):
        store = extract(*digits(FEW), 'val', tmp_path / 'val')
    assert store.fingerprint['engine'] == 'torch, torch channels_last'
    assert len(store) == 21


def test_a_pass_that_is_cut_off_at_its_end_says_its_engine(tmp_path,
                                                           monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(StoreWriter, 'finish', stopped)
    with pytest.raises(KeyboardInterrupt):
        extract(*digits(FEW), 'val', tmp_path / 'val', engine='torch')
    monkeypatch.undo()
    store = extract(*digits(FEW), 'val', tmp_path / 'val')
    assert store.fingerprint['engine'] == 'torch'


def test_a_model_is_hashed_and_an_engine_started_once(tmp_path, monkeypatch):
    from gap_plugin.features import extraction
    calls = []
    for name in ('weights_of', 'fastest'):
        work = getattr(extraction, name)
        monkeypatch.setattr(extraction, name, lambda *a, w=work, n=name, **k: (
            calls.append((n, k.get('count'))), w(*a, **k))[1])
    passes = Extraction(*digits(FEW))
    for split in ('train', 'val'):
        passes(split, tmp_path / split)
    assert calls == [('weights_of', None), ('fastest', 40)]


def test_the_pass_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    """Blocks are synced one by one in a thread, and errors come out."""
    threads, synced = set(), []

    def sync(_):
        synced.append(threading.current_thread())
    monkeypatch.setattr(store_writer.os, 'fsync', sync)
    to_cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: (
        threads.add(threading.current_thread()), to_cpu(self))[1])
    extraction = Extraction(*digits(FEW), engine='torch')
    threads.clear()  # the weights are hashed
    del synced[:]
    extraction('train', tmp_path / 'train')
    (thread, ) = threads
    assert thread is not threading.main_thread()
    assert synced.count(thread) == 3  # 40 rows by 16

    def no_room(_):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(28, 'No space left on device')
    monkeypatch.setattr(store_writer.os, 'fsync', no_room)
    with pytest.raises(OSError, match='cannot write to .*No space'):
        extract(*digits(FEW), 'val', tmp_path / 'val')
    assert not (tmp_path / 'val').exists()


class Waits(TorchDispatchMode):
    """Refuses what makes a host wait for its GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = str(func)
        on_gpu = [x for x in args if torch.is_tensor(x)
                  and x.device.type == 'cuda']
        assert 'local_scalar' not in name and 'nonzero' not in name, name
        if '_to_copy' in name:
            assert not on_gpu or found.device.type == 'cuda', 'to the host'
            if not on_gpu and found.device.type == 'cuda':
                assert kwargs.get('non_blocking'), 'a copy that is waited for'
        return found


def test_on_a_gpu_nothing_is_waited_for():
    model, _ = digits()
    part = FixedPart(model)
    model.data_preprocessor._device = torch.device('cuda')
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in part.modules():  # as by to('cuda'), which needs one
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = tensor.detach().to('cuda')
        for name, tensor in part.backbone.named_parameters():
            assert tensor.is_cuda, name
        engine = engines._channels_last(part, torch.empty(
            1, 3, 32, 32, device='cuda'), False)
        batch = dict(inputs=torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
                     data_samples=None)
        with Waits():
            features = engine(part.images(batch))
            assert features.shape == (4, 192) and features.is_cuda
            with pytest.raises(AssertionError, match='to the host'):
                features.cpu()


def test_the_tool_takes_an_engine(tmp_path, export_pays):
    import onnxruntime
    options = [f'{key}={value}' for key, value in FEW.items()]
    flags = (DIGITS, '--work-dir', tmp_path, '--cfg-options', *options)
    text = python(OURS / 'extract_features.py', '--engine', 'onnxruntime',
                  *flags)
    assert re.search(r'val +21 x 192 float32 by onnxruntime '
                     + re.escape(onnxruntime.__version__), text)
    assert '--engine onnxruntime' in last_line(text)
    text = python(OURS / 'extract_features.py', '--engine', 'tpu', *flags,
                  ok=False)
    assert last_line(text).endswith("'tpu' must be one of "
                                    f'{", ".join(ENGINES)}; see --help.')


@pytest.mark.parametrize('engine', ['torch', 'onnxruntime'])
def test_a_test_reports_the_figure_of_the_probe(tmp_path, engine):
    flags = (DIGITS, '--work-dir', tmp_path, '--cfg-options',
             'train_dataloader.dataset.indices=300')
    probed = python(OURS / 'linear_probe.py', *flags[:-2], '--freeze',
                    '--epochs', 3, '--engine', engine, *flags[-2:])
    tested = python(OURS / 'test.py', DIGITS, tmp_path / 'linear_probe.pth',
                    *flags[1:])
    figures = [float(re.findall(r'accuracy/top1 ([\d.]+)', text)[-1])
               for text in (probed, tested)]
    allowed = 0 if engine == 'torch' else 100 / 355 + .01
    assert abs(figures[0] - figures[1]) <= allowed


