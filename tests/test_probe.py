"""A probe on stored features is the training of the frozen network."""

import copy
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from test_probing import DIGITS, build

from gap_plugin.probing import (
    FeatureStore,
    StoreWriter,
    check_frozen,
    extract,
    probe,
    probe_model,
)
from gap_plugin.probing.batches import FeatureBatches
from gap_plugin.probing.probe import _takes_whole, stretched

ROOT = Path(__file__).parents[1]
STOCK = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
FROZEN = {'model.backbone.frozen_stages': 'all',
          'train_dataloader.batch_size': 64}


def stores(model, cfg, folder):
    return [extract(model, cfg, split, folder / split)
            for split in ('train', 'val')]


def run_probe(options, folder, epochs=3, **kwargs):
    model, cfg = build(options)
    train, val = stores(model, cfg, folder)
    before = copy.deepcopy(model.backbone.state_dict())
    metrics = probe(model, cfg, train, val, epochs=epochs,
                    work_dir=folder / 'probe', metainfo=dict(classes='0' * 10),
                    **kwargs)
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    return model, metrics


def test_a_probe_learns_what_frozen_training_from_images_learns(tmp_path):
    # the last epoch of both, without a choice by validation
    options = {**FROZEN, 'val_evaluator': dict(type='Accuracy', topk=(1, )),
               'default_hooks.checkpoint': dict(
                   type='CheckpointHook', interval=1)}
    model, cfg = build(options)
    torch.save(model.state_dict(), tmp_path / 'start.pth')
    train, _ = stores(model, cfg, tmp_path)
    probe(model, cfg, train, None, epochs=3, work_dir=tmp_path / 'probe',
          metainfo={})
    cfg.load_from = str(tmp_path / 'start.pth')
    cfg.work_dir = str(tmp_path / 'frozen')
    cfg.train_dataloader.dataset.pipeline = (
        cfg.test_dataloader.dataset.pipeline)
    cfg.param_scheduler = stretched(cfg, 3, 22)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=3)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    runner = Runner.from_cfg(cfg)
    runner.train()
    other = runner.model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4,
                                   msg=lambda m, n=name: f'{n}: {m}')
    start = torch.load(tmp_path / 'start.pth', weights_only=True)
    assert (other['head.fc.weight'] - start['head.fc.weight']
            ).abs().max() > 0.01


def tool(path, *args, ok=True):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(path), *map(str, args)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert (done.returncode == 0) is ok, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_stock_test_tool_reports_what_the_probe_reported(tmp_path):
    text = tool(ROOT / 'tools' / 'linear_probe.py', DIGITS, '--work-dir',
                tmp_path, '--epochs', 5, '--freeze')
    path, reported = re.search(r'(\S+linear_probe\.pth): accuracy/top1 '
                               r'([\d.]+)', text).groups()
    text = tool(STOCK / 'test.py', DIGITS, path, '--work-dir',
                tmp_path / 'test')
    assert re.findall(r'Epoch\(test\).*accuracy/top1: ([\d.]+)',
                      text)[-1] == reported
    assert float(reported) > 50
    # a second probe makes no second pass
    text = tool(ROOT / 'tools' / 'linear_probe.py', DIGITS, '--work-dir',
                tmp_path, '--epochs', 5, '--freeze')
    assert 'image/s' not in text
    assert f'accuracy/top1 {reported}' in text


def test_a_backbone_that_is_trained_is_refused_and_explained(tmp_path):
    model, _ = build()
    with pytest.raises(ValueError, match=r'not frozen \(\d+ parameters are '
                       r"trained, 0 norms .*frozen_stages='all'.*--freeze"):
        check_frozen(model)
    assert model.training
    check_frozen(build(FROZEN)[0])
    model, _ = build({'model.backbone': dict(
        type='TimmFeatureBackbone', model_name='test_resnet')})
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r'\(0 parameters are trained, '
                       r'[1-9]\d* norms'):
        check_frozen(model)


def fake_store(folder, labels, width=16):
    labels = np.asarray(labels)
    features = np.random.default_rng(0).normal(
        size=(len(labels), width)).astype(np.float32)
    writer = StoreWriter(folder, len(labels), width, 'float32', 8)
    writer.prepare(labels, [str(i) for i in range(len(labels))], {})
    for i in writer.missing():
        writer.write(i, features[i * 8:(i + 1) * 8])
    return writer.finish(dict(batch_size=8), in_tuple=True)


HEADS = {
    'linear': (dict(type='LinearHead', num_classes=3, in_channels=16), True),
    'stock': (dict(type='LinearClsHead', num_classes=3, in_channels=16),
              True),
    'smooth': (dict(type='LinearHead', num_classes=3, in_channels=16,
                    loss=dict(type='LabelSmoothLoss', label_smooth_val=.1)),
               True),
    'arcface': (dict(type='ArcFaceClsHead', num_classes=3, in_channels=16),
                True),
    'multi-label': (dict(type='MultiLabelLinearClsHead', num_classes=3,
                         in_channels=16), False),
}


@pytest.mark.parametrize('kind', HEADS)
def test_any_head_is_trained_on_the_labels_of_its_rows(tmp_path, kind):
    head, whole = HEADS[kind]
    model, cfg = build({
        'model.head': head, 'model.neck': [
            dict(type='GAPNeck'), dict(type='BNNeck', in_channels=16)],
        'model.backbone.out_indices': (0, ),
        'model.type': 'ImageClassifier',
        'train_dataloader.batch_size': 8})
    labels = [i % 3 for i in range(21)]
    if not whole:
        labels = np.eye(3, dtype=np.float32)[labels]
    store = fake_store(tmp_path / 'train', labels)
    short = probe_model(model)
    assert _takes_whole(short, store) is whole
    rows = np.array([3, 1, 20, 7])
    losses = []
    for together in ([True, False] if whole else [False]):
        data = FeatureBatches(store, {}, together)[rows]
        losses.append(short.eval()(**short.data_preprocessor(data),
                                   mode='loss')['loss'])
    torch.testing.assert_close(losses[0], losses[-1], rtol=0, atol=0)
    before = model.head.fc.weight.clone() if kind != 'arcface' else None
    probe(model, cfg, store, None, epochs=2, work_dir=tmp_path / 'w',
          metainfo={})
    if before is not None:
        assert (model.head.fc.weight - before).abs().max() > 0


def test_labels_out_of_range_are_named(tmp_path):
    model, cfg = build()
    store = fake_store(tmp_path / 'train', [0, 10, 3])
    with pytest.raises(ValueError, match='labels from 0 to 10, but '
                       'num_classes of the head is 10'):
        probe(model, cfg, store, None, epochs=1, work_dir=tmp_path,
              metainfo={})


def test_fewer_rows_than_a_batch_are_named(tmp_path):
    model, cfg = build()
    store = fake_store(tmp_path / 'train', [0, 1, 2], 192)
    with pytest.raises(ValueError, match='3 training images give no batch '
                       'of 64'):
        probe(model, cfg, store, None, epochs=1, work_dir=tmp_path,
              metainfo={})


def test_the_schedule_is_stretched():
    cfg = Config.fromfile(DIGITS)  # 2 epochs of warm-up of 12
    warm, cosine = stretched(cfg, 120, 22)
    assert (warm['end'], cosine['begin'], cosine['end']) == (20, 20, 120)
    assert cfg.param_scheduler[0]['end'] == 2
    assert [s['type'] for s in stretched(cfg, 1, 22)] == [
        'CosineAnnealingLR']


def test_a_probe_killed_at_any_moment_goes_on_to_the_same_end(tmp_path):
    options = {**FROZEN, 'randomness': dict(seed=0)}
    whole, metrics = run_probe(options, tmp_path / 'whole', epochs=12)
    model, cfg = build(options)
    stores(model, cfg, tmp_path)
    rng = random.Random(0)
    context = torch.multiprocessing.get_context('fork')
    struck = began = 0
    for i in range(20):
        folder = tmp_path / 'probe' / str(i)
        process = context.Process(target=_probe, args=(
            options, tmp_path, folder))
        process.start()
        time.sleep(rng.uniform(0, 1.))
        process.kill()
        process.join()
        struck += process.exitcode != 0
        began += (folder / 'last.pth').exists() and process.exitcode != 0
        found = _probe(options, tmp_path, folder)
        assert found == metrics
    assert struck > 5  # the kills did strike
    assert began > 2  # and some of them in mid-training


def test_another_probe_is_not_gone_on_with(tmp_path):
    run_probe(FROZEN, tmp_path, epochs=2)
    with pytest.raises(ValueError, match=r'last\.pth.* is of another probe: '
                       r'epochs 2 against 3 now'):
        run_probe(FROZEN, tmp_path, epochs=3, resume=True)
    run_probe(FROZEN, tmp_path, epochs=2, resume=True)


def _probe(options, stores_in, folder):
    torch.set_num_threads(1)
    model, cfg = build(options)
    return probe(
        model, cfg, FeatureStore(stores_in / 'train'),
        FeatureStore(stores_in / 'val'), epochs=12, work_dir=folder,
        metainfo=dict(classes='0' * 10), resume=True, keep_every=0)
