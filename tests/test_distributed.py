"""More than one process: the same numbers, and a process that is killed."""

import gc
import os
import re
import subprocess
import sys
import weakref
from functools import partial

import psutil
import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.distributed.fsdp.wrap import (
    _recursive_wrap,
    size_based_auto_wrap_policy,
)
from torch.nn.parallel import DistributedDataParallel

from commands import OURS, PATH, ROOT, free_port
from gap_plugin import TimmFeatureBackbone
from gap_plugin.cli.train import main as train
from gap_plugin.engine import timm_auto_wrap_policy
from networks import full
from runs import data, model


def config(folder, network, epochs, batch_size, neck, **backbone):
    """A config file; ``batch_size`` images in each process."""
    parts = model(network, **backbone)
    parts['neck'] = neck
    cfg = Config(dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['gap_plugin']), model=parts,
        train_dataloader=data('train', 32, batch_size),
        val_dataloader=data('test', 31, 8), val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            sampler_seed=dict(type='DistSamplerSeedHook'),
            checkpoint=dict(type='AtomicCheckpointHook', interval=1,
                            save_best='auto')),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[
            dict(type='LocalVisBackend')]), randomness=dict(seed=0)))
    folder.mkdir(exist_ok=True)
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def start(cfg, processes, *flags):
    if processes == 1:
        command = [sys.executable, OURS / 'train.py', cfg]
    else:
        command = ['bash', OURS / 'dist_train.sh', cfg, processes]
    command += ['--work-dir', cfg.parent / 'w', '--verbose', *flags]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=cfg.parent, env={
            **os.environ, 'PORT': str(free_port()), 'PATH': PATH,
            'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore',
            'PYTHONPATH': os.pathsep.join(filter(None, (
                str(cfg.parent), os.environ.get('PYTHONPATH'))))})


def finish(process, ok=True):
    text, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) is ok, text[-3000:]
    return text


def equal(a, b, **tolerance):
    a, b = (torch.load(path)['state_dict'] for path in (a, b))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], msg=name, **tolerance)


# SyncBatchNorm takes no CPU tensors: these normalise over no batch
@pytest.mark.parametrize('network, settings', [
    ('test_resnet', dict(norm_eval=True)), full('test_vit', {}),
    full('test_convnext', dict(frozen_stages=1)),
])
def test_two_processes_are_one_with_the_double_batch(
        tmp_path, network, settings):
    texts = {
        count: finish(start(config(
            tmp_path / str(count), network, 2, 8 // count,
            dict(type='GAPNeck'), **settings), count))
        for count in (1, 2)
    }
    equal(*(tmp_path / n / 'w' / 'epoch_2.pth' for n in '12'),
          rtol=1e-4, atol=1e-5)
    one, two = (
        re.findall(r'Epoch\(val\).*top1: ([\d.]+)', texts[count])
        for count in (1, 2))
    assert one == two and len(one) == 2  # of 31 images, unevenly shared
    start_weights = TimmFeatureBackbone(network, img_size=32).state_dict()
    trained = torch.load(tmp_path / '2' / 'w' / 'epoch_2.pth')['state_dict']
    assert any(not torch.equal(value, trained[f'backbone.{name}'])
               for name, value in start_weights.items())


def test_a_run_leaves_no_thread_of_its_process_group(tmp_path, monkeypatch):
    """One that is left aborts the process now and then, as that ends."""
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1,
                            MASTER_ADDR='127.0.0.1',
                            MASTER_PORT=free_port()).items():
        monkeypatch.setenv(name, str(value))
    started = []
    wrap = DistributedDataParallel.__init__

    def watched(self, *args, **kwargs):
        wrap(self, *args, **kwargs)
        started.append(weakref.ref(self))
        started.append(weakref.ref(self.process_group))

    monkeypatch.setattr(DistributedDataParallel, '__init__', watched)
    path = config(tmp_path / 'c', 'test_resnet', 1, 16, dict(type='GAPNeck'))
    gc.disable()
    try:
        train([str(path), '--work-dir', str(tmp_path / 'w'),
               '--launcher', 'pytorch'])
    finally:
        gc.enable()
    assert len(started) == 2
    assert [found() for found in started] == [None, None]


#: Ends the second process in its third epoch, once, as the system does.
KILLER = """
import os, pathlib, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Killer(Hook):

    def before_train_epoch(self, runner):
        rank = os.environ['RANK']
        (folder / f'rank{rank}').write_text(str(os.getpid()))
        mark = folder / 'killed'
        if runner.epoch == 2 and rank == '1' and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.full
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on(
        tmp_path):
    neck = [dict(type='GAPNeck'), dict(type='BNNeck')]
    finish(start(config(tmp_path / 'a', 'test_resnet', 4, 4, neck), 2))
    path = config(tmp_path / 'b', 'test_resnet', 4, 4, neck)
    folder = path.parent
    (folder / 'killer.py').write_text(KILLER.replace(
        'from mmengine.hooks', f'folder = pathlib.Path({str(folder)!r})\n'
        'from mmengine.hooks', 1))
    cfg = Config.fromfile(path)
    cfg.custom_imports.imports.append('killer')
    cfg.custom_hooks = [dict(type='Killer')]
    cfg.dump(path)
    text = finish(start(path, 2), ok=False)
    assert 'SIGKILL' in text or 'Signal 9' in text
    assert (folder / 'killed').exists()
    for rank in range(2):
        assert not psutil.pid_exists(int(
            (folder / f'rank{rank}').read_text()))
    last = (folder / 'w' / 'last_checkpoint').read_text()
    assert torch.load(last)['meta']['epoch'] == 2
    text = finish(start(path, 2, '--resume'))
    assert 'resumed epoch: 2' in text
    equal(*(tmp_path / n / 'w' / 'epoch_4.pth' for n in 'ab'))


class Unit(nn.Module):
    """What FSDP does to a part: its parameters are there in its forward."""

    def __init__(self, module):
        super().__init__()
        self.inner = module
        self.own = [(owner, name, parameter) for owner in module.modules()
                    for name, parameter in owner._parameters.items()
                    if parameter is not None
                    and not getattr(parameter, 'sharded', False)]
        for _, _, parameter in self.own:
            parameter.sharded = True
        self.release()

    def release(self):
        for owner, name, parameter in self.own:
            owner._parameters[name] = nn.Parameter(
                torch.full_like(parameter, torch.nan))

    def forward(self, *args, **kwargs):
        for owner, name, parameter in self.own:
            owner._parameters[name] = parameter
        try:
            return self.inner(*args, **kwargs)
        finally:
            self.release()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('inner'), name)


def shard(backbone, policy):
    """Wrap parts as FSDP does."""
    _recursive_wrap(backbone, policy, Unit, set(), set(),
                    only_wrap_children=True)


# from 20 000 parameters on, so that small networks are divided, too
POLICY = partial(timm_auto_wrap_policy, min_num_params=20_000)


@pytest.mark.parametrize('name', [
    'test_efficientnet', 'test_vit', 'levit_128s', *map(full, (
        'resnet18', 'convnext_atto', 'beit_base_patch16_224',
        'swinv2_cr_tiny_ns_224', 'nf_regnet_b0',
        'swin_tiny_patch4_window7_224'))])
def test_sharded_parts_are_there_when_they_are_used(name):
    backbone = TimmFeatureBackbone(name).eval()
    x = torch.randn(1, 3, *backbone.image_size)
    with torch.no_grad():
        before = backbone(x)
        shard(backbone, POLICY)
        units = sum(isinstance(m, Unit) for m in backbone.modules())
        after = backbone(x)
    assert units > 1
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)


def test_the_config_divides_most_of_its_network():
    cfg = Config.fromfile(ROOT / 'configs' / 'fsdp' /
                          'vit_small_patch16_224.py')
    least = cfg.strategy.model_wrapper.auto_wrap_policy.min_num_params
    with torch.device('meta'):
        backbone = TimmFeatureBackbone(cfg.model.backbone.model_name)
        count = sum(p.numel() for p in backbone.parameters())
        shard(backbone, partial(timm_auto_wrap_policy, min_num_params=least))
    units = [m for m in backbone.modules() if isinstance(m, Unit)]
    inside = sum(p.numel() for unit in units for _, _, p in unit.own)
    assert inside > 0.9 * count and len(units) >= 24


def test_pytorchs_own_policy_is_wrong_for_timm():
    """Or this one is not needed any more."""
    backbone = TimmFeatureBackbone('test_vit').eval()
    policy = partial(size_based_auto_wrap_policy, min_num_params=20_000)
    shard(backbone, policy)
    x = torch.randn(1, 3, *backbone.image_size)
    with torch.no_grad(), pytest.raises(
            (AssertionError, RuntimeError, TypeError)):
        assert backbone(x)[0].isfinite().all()


@pytest.mark.parametrize('engine', ['fsdp', 'deepspeed'])
def test_configs_of_other_engines_name_parts_that_exist(engine):
    from mmengine.registry import FUNCTIONS, OPTIM_WRAPPERS, STRATEGIES
    cfg = Config.fromfile(
        ROOT / 'configs' / engine / 'vit_small_patch16_224.py')
    assert cfg.runner_type == 'FlexibleRunner'
    assert STRATEGIES.get(cfg.strategy.type)
    assert OPTIM_WRAPPERS.get(cfg.optim_wrapper.get('type', 'OptimWrapper'))
    if engine == 'fsdp':
        policy = cfg.strategy.model_wrapper.auto_wrap_policy
        assert FUNCTIONS.get(policy.type) is timm_auto_wrap_policy
