"""A probe on stored features is the training of the frozen network."""

import copy
import csv
import itertools
import json
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, EVALUATOR, PARAM_SCHEDULERS
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend, Visualizer
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from commands import DIGITS, OURS, STOCK, python, reported
from errors import one_line
from gap_plugin.cli.probe import check_flags, flags, probe_rows
from gap_plugin.features import StoreWriter, extract
from gap_plugin.probing import (
    check_frozen,
    few_shot,
    grid,
    interval,
    knn,
    logistic,
    probe,
    probe_model,
)
from gap_plugin.probing.candidates import Candidates
from gap_plugin.probing.choice import Score, folds
from gap_plugin.probing.metrics import evaluate
from gap_plugin.probing.optimiser import optimiser
from gap_plugin.probing.parts import norm_of
from gap_plugin.probing.rows import Batches, Rows
from gap_plugin.probing.schedule import Schedule
from gap_plugin.probing.training import _Run
from runs import digits

CPU = torch.device('cpu')

FROZEN = {'model.backbone.frozen_stages': 'all',
          'train_dataloader.batch_size': 64}


def stores(model, cfg, folder):
    return [extract(model, cfg, split, folder / split)
            for split in ('train', 'val')]


def run_probe(options, folder, epochs=3, **kwargs):
    model, cfg = digits(options)
    train, val = stores(model, cfg, folder)
    before = copy.deepcopy(model.backbone.state_dict())
    metrics = probe(model, cfg, train, val, epochs=epochs,
                    work_dir=folder / 'probe', metainfo=dict(classes='0' * 10),
                    **kwargs)
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    return model, metrics


AS_TRAINED = {
    'plain': {},
    'clipped': {'optim_wrapper.clip_grad.max_norm': .3},
    'a sampler': {'train_dataloader.sampler': dict(type='ByClass',
                                                   _delete_=True)},
    'scores': {'model.data_preprocessor': dict(to_onehot=True),
               'model.head.loss': dict(type='CrossEntropyLoss',
                                       use_sigmoid=True)},
    'by iterations': {'train_dataloader.sampler': dict(
        type='InfiniteSampler', _delete_=True)},
}


@pytest.mark.parametrize('kind', AS_TRAINED)
def test_a_probe_learns_what_frozen_training_from_images_learns(
        tmp_path, kind):
    options = {**FROZEN, **AS_TRAINED[kind],
               'train_cfg.max_epochs': 3, 'param_scheduler': [
                   dict(type='LinearLR', start_factor=.1, end=1,
                        convert_to_iter_based=True),
                   dict(type='ExponentialLR', gamma=.5, begin=1)]}
    model, cfg = digits(options)
    torch.save(model.state_dict(), tmp_path / 'start.pth')
    train, _ = stores(model, cfg, tmp_path)
    if kind == 'by iterations':
        cfg.param_scheduler[1:] = [
            dict(type='CosineAnnealingLR', by_epoch=False),
            dict(type='ExponentialLR', gamma=.5)]  # never steps there
        cfg.train_cfg = dict(by_epoch=False, max_iters=3 * (len(train) // 64))
    probe(model, cfg, train, None, epochs=3)
    cfg.load_from = str(tmp_path / 'start.pth')
    cfg.work_dir = str(tmp_path / 'frozen')
    cfg.train_dataloader.dataset.pipeline = (
        cfg.test_dataloader.dataset.pipeline)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    other = runner.model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4,
                                   msg=lambda m, n=name: f'{n}: {m}')
    start = torch.load(tmp_path / 'start.pth', weights_only=True)
    assert (other['head.fc.weight'] - start['head.fc.weight']
            ).abs().max() > 0.01


@DATA_SAMPLERS.register_module()
class ByClass(torch.utils.data.Sampler):
    """Two images of the classes 0 and 1 each, over and over."""

    def __init__(self, dataset, seed):
        labels = np.array([dataset.get_data_info(i)['gt_label']
                           for i in range(len(dataset))])
        self.rows = np.concatenate([
            np.flatnonzero(labels == c)[:2] for c in (0, 1)]).tolist() * 40

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)


def test_the_stock_test_tool_reports_what_the_probe_reported(tmp_path):
    text = python(OURS / 'linear_probe.py', DIGITS, '--work-dir',
                tmp_path, '--epochs', 5, '--freeze')
    found = re.search(r'^accuracy/top1 ([\d.]+)$', text, re.M)[1]
    path = tmp_path / 'linear_probe.pth'
    text = python(STOCK / 'test.py', DIGITS, path, '--work-dir',
                  tmp_path / 'test')
    assert f'{float(reported(text)):.2f}' == found
    assert float(found) > 50
    # a second probe makes no second pass
    text = python(OURS / 'linear_probe.py', DIGITS, '--work-dir',
                tmp_path, '--epochs', 5, '--freeze')
    assert f'accuracy/top1 {found}' in text


def test_the_tool_tells_all_results_in_one_table(tmp_path):
    text = python(OURS / 'linear_probe.py', DIGITS, '--work-dir',
                tmp_path, '--epochs', 3, '--freeze', '--lr', 1e-4, 1e-2,
                '--weight-decay', 0, 0.05, '--knn', 5, 20, '--shots', 2,
                '--views', 2, '--test', '--folds', 3, '--logistic')
    assert 'the test images are the validation images' in text
    assert {p.name for p in (tmp_path / 'features').iterdir()} == {
        'train', 'val', 'test', 'view_0', 'view_1'}
    with open(tmp_path / 'linear_probe.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    by = {key: [row for row in rows if (row['method'], row['split']) == key]
          for key in (('probe', 'train, 3 folds'), ('probe', 'val'),
                      ('probe', 'test'), ('k-NN', 'val'),
                      ('few-shot', 'val'), ('logistic', 'val'),
                      ('logistic', 'train, 3 folds'))}
    assert [len(found) for found in by.values()] == [4, 1, 1, 2, 1, 1, 1]
    chosen = by['probe', 'train, 3 folds']
    assert {(row['lr'], row['weight_decay']) for row in chosen} == {
        (lr, decay) for lr in ('0.0001', '0.01') for decay in ('0.0', '0.05')}
    (kept, ) = [row for row in chosen if row['kept'] == 'True']
    assert float(kept['value']) == max(float(row['value']) for row in chosen)
    assert float(kept['std']) >= 0
    (val, ), (test, ) = by['probe', 'val'], by['probe', 'test']
    assert float(val['low']) < float(val['value']) < float(val['high'])
    # of one and the same images
    assert test['value'] == val['value']
    assert [row['k'] for row in by['k-NN', 'val']] == ['5', '20']
    for row in rows:
        assert re.search(rf'{row["method"]} .*{float(row["value"]):.6g}',
                         text), row


def test_no_results_of_an_earlier_probe_lie_beside_the_weights(tmp_path):
    args = (OURS / 'linear_probe.py', DIGITS, '--work-dir', tmp_path,
            '--epochs', 1, '--freeze')
    python(*args)
    assert (tmp_path / 'linear_probe.csv').is_file()
    python(*args, '--no-validate')
    assert not (tmp_path / 'linear_probe.csv').exists()
    assert (tmp_path / 'linear_probe.pth').is_file()


def test_a_backbone_that_is_trained_is_refused_and_explained(tmp_path):
    model, _ = digits()
    with pytest.raises(ValueError, match=r'not frozen \(\d+ parameters are '
                       r"trained, 0 norms .*frozen_stages='all'.*freeze=True"):
        check_frozen(model)
    assert model.training
    check_frozen(digits(FROZEN)[0])
    model, _ = digits({'model.backbone': dict(
        type='TimmFeatureBackbone', model_name='test_resnet')})
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r'\(0 parameters are trained, '
                       r'[1-9]\d* norms'):
        check_frozen(model)


def fake_store(folder, labels, width=16, centres=None):
    labels = np.asarray(labels)
    features = np.random.default_rng(len(folder.name)).normal(
        size=(len(labels), width)).astype(np.float32)
    if centres is not None:
        features += centres[labels].astype(np.float32)
    writer = StoreWriter(folder, len(labels), width, 'float32', 8)
    writer.prepare(labels, [str(i) for i in range(len(labels))], {})
    for i in writer.missing():
        writer.write(i, features[i * 8:(i + 1) * 8])
    return writer.finish(dict(batch_size=8), in_tuple=True)


HEADS = {
    'linear': dict(type='LinearHead', num_classes=3, in_channels=16),
    'stock': dict(type='LinearClsHead', num_classes=3, in_channels=16),
    'smooth': dict(type='LinearHead', num_classes=3, in_channels=16,
                   loss=dict(type='LabelSmoothLoss', label_smooth_val=.1)),
    **{kind: dict(type='LinearHead', num_classes=3, in_channels=16,
                  loss=dict(type='CrossEntropyLoss', **loss))
       for kind, loss in {
           'half': dict(loss_weight=.5),
           'of classes': dict(class_weight=[1., 2., 3.]),
           'soft, one-hot': dict(use_soft=True)}.items()},
    'dropout': dict(type='LinearHead', num_classes=3, in_channels=16,
                    dropout=.5),
    'arcface': dict(type='ArcFaceClsHead', num_classes=3, in_channels=16),
    'multi-label': dict(type='MultiLabelLinearClsHead', num_classes=3,
                        in_channels=16),
    'one label of several': dict(type='MultiLabelLinearClsHead',
                                 num_classes=3, in_channels=16),
    'sigmoid': dict(type='LinearHead', num_classes=3, in_channels=16,
                    loss=dict(type='CrossEntropyLoss', use_sigmoid=True)),
    'dropout, sigmoid': dict(
        type='LinearHead', num_classes=3, in_channels=16, dropout=.5,
        loss=dict(type='CrossEntropyLoss', use_sigmoid=True)),
}


@pytest.mark.parametrize('kind', HEADS)
def test_any_head_is_trained_with_its_own_loss(tmp_path, kind):
    model, cfg = digits({
        'model.head': HEADS[kind], 'model.neck': [
            dict(type='GAPNeck'), dict(type='BNNeck', in_channels=16)],
        'model.type': 'ImageClassifier', 'train_dataloader.batch_size': 8,
        'model.data_preprocessor': dict(
            num_classes=3,
            to_onehot='sigmoid' in kind or 'one-hot' in kind)})
    labels = [i % 3 for i in range(21)]
    if kind == 'multi-label':
        labels = np.eye(3, dtype=np.float32)[labels]
    store = fake_store(tmp_path / 'train', labels)
    short = probe_model(model)
    trained = Candidates(short, 1)
    assert trained.linear is not ('dropout' in kind or kind == 'arcface')
    x, y = Rows([store], CPU).take(torch.tensor([3, 1, 20, 7]))
    trained.train(False)
    samples = [
        DataSample().set_gt_score(row) if y.is_floating_point() else
        DataSample().set_gt_label(row) for row in y]
    own = short.loss(x, model.data_preprocessor(dict(
        inputs=torch.zeros(4, 3, 2, 2), data_samples=samples),
        training=True)['data_samples'])['loss']
    torch.testing.assert_close(trained.loss(x, y)['loss'], own)
    before = copy.deepcopy(model.head.state_dict())
    probe(model, cfg, store, None, epochs=2)
    for name, value in model.head.state_dict().items():
        assert (value - before[name]).abs().max() > 0


def test_what_a_config_sets_on_fixed_features_is_told_and_changed(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    cfg.optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=7., weight_decay=7.),
        constructor='FinetuneOptimWrapperConstructor',
        paramwise_cfg=dict(frozen=dict(lr=1e-3, weight_decay=.5, width=32)))
    trained = Candidates(probe_model(model), 2)
    wrapper = optimiser(trained, cfg, [{}, dict(lr=1e-2, norm=True)])
    found = {id(p): (group['lr'], group['weight_decay'])
             for group in wrapper.optimizer.param_groups
             for p in group['params']}
    assert [found[id(one.head.fc.weight)] for one in trained.models] == [
        (2e-3, .125), (2e-2, .125)]
    (row, ) = probe(model, cfg, train, val, epochs=1).table
    assert (row['lr'], row['weight_decay']) == (1e-3, .5)
    # another constructor knows nothing of it
    cfg.optim_wrapper.constructor = 'DefaultOptimWrapperConstructor'
    (row, ) = probe(model, cfg, train, val, epochs=1).table
    assert (row['lr'], row['weight_decay']) == (7, 7)
    (*_, row) = probe(model, cfg, train, val, epochs=1, select='val',
                      settings=grid([1e-3, 1e-2], [.1])).table
    assert (row['lr'], row['weight_decay']) == (1e-2, .1)


def test_nothing_left_to_train_is_named(tmp_path):
    model, cfg = digits(SIXTEEN)
    model.head.requires_grad_(False)
    train, val = small_stores(tmp_path)
    with pytest.raises(ValueError, match='nothing .* left to train') as error:
        probe(model, cfg, train, val, epochs=1,
              settings=grid([1e-3], None, [True, False]))
    one_line(error)


def test_labels_out_of_range_are_named(tmp_path):
    model, cfg = digits()
    store = fake_store(tmp_path / 'train', [0, 10, 3])
    with pytest.raises(ValueError, match='labels from 0 to 10, but '
                       'num_classes of the head is 10'):
        probe(model, cfg, store, None, epochs=1)


def test_fewer_rows_than_a_batch_are_named(tmp_path):
    model, cfg = digits()
    store = fake_store(tmp_path / 'train', [0, 1, 2], 192)
    with pytest.raises(ValueError, match='3 training images give no batch '
                       'of 64'):
        probe(model, cfg, store, None, epochs=1)


def rates(schedulers, own, epochs, length=10, lr=1.):
    """Learning rates, step by step, of ``own`` epochs made ``epochs``."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    step = optimizer.step
    schedule = Schedule(schedulers, optimizer, own * length, length,
                        epochs * length)
    assert optimizer.step == step  # schedulers count its calls otherwise
    found = []
    for i in range(epochs * length):
        schedule.apply(i)
        found.append(optimizer.param_groups[0]['lr'])
    return np.array(found)


SCHEDULES = {
    'warm-up and cosine': [
        dict(type='LinearLR', start_factor=.01, end=2,
             convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', T_max=8, begin=2)],
    'exponential': [dict(type='ExponentialLR', gamma=.97)],
    'steps': [dict(type='MultiStepLR', milestones=[3, 7], gamma=.1)],
    'endless': [dict(type='StepLR', step_size=1, end=float('inf'))],
    'restarts': [dict(type='CosineRestartLR', periods=[4, 6],
                      restart_weights=[1, .5], eta_min=0)],
    'iterations': [dict(type='PolyLR', by_epoch=False, end=100)],
}


@pytest.mark.parametrize('kind', SCHEDULES)
def test_the_schedule_is_stretched_whatever_it_counts(kind):
    own = rates(SCHEDULES[kind], 10, 10)
    assert own.min() < own.max()
    # by MMEngine's own means
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.)
    cfgs = SCHEDULES[kind]
    built = [PARAM_SCHEDULERS.build(dict(cfg), default_args=dict(
        optimizer=optimizer, epoch_length=10))
        for cfg in cfgs]
    expected = []
    for i in range(100):
        expected.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for one in built:
            if not one.by_epoch or i % 10 == 9:
                one.step()
    np.testing.assert_array_equal(own, expected)
    np.testing.assert_array_equal(rates(cfgs, 10, 100), own.repeat(10))
    np.testing.assert_array_equal(rates(cfgs, 10, 2), own[::5])


SIXTEEN = {
    'model.head': dict(type='LinearHead', num_classes=3, in_channels=16),
    'model.neck': [dict(type='GAPNeck'),
                   dict(type='BNNeck', in_channels=16)],
    'model.type': 'ImageClassifier', 'train_dataloader.batch_size': 8,
    'optim_wrapper.clip_grad.max_norm': 0.5}


def small_stores(folder):
    labels = np.random.default_rng(1).integers(0, 3, 48)
    centres = 0.7 * np.random.default_rng(2).normal(size=(3, 16))
    return [fake_store(folder / split, labels, centres=centres)
            for split in ('train', 'val')]


@MODELS.register_module()
class _Learns(torch.nn.Module):

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, scores, labels, **_):
        return torch.nn.functional.cross_entropy(self.scale * scores, labels)


VARIANTS = {
    'BN and linear': ({}, True),
    'linear alone': ({'model.neck': [dict(type='GAPNeck')]}, True),
    'no affine, no bias': ({
        'model.neck': [dict(type='GAPNeck'),
                       dict(type='BNNeck', in_channels=16, affine=False)],
        'model.head.bias': False}, True),
    'shift frozen': ({'model.neck': [dict(type='GAPNeck'), dict(
        type='BNNeck', in_channels=16, freeze_bias=True)]}, True),
    'accumulated': ({'optim_wrapper.accumulative_counts': 2}, True),
    'Lamb': ({'optim_wrapper.optimizer': dict(
        type='Lamb', lr=1e-3, weight_decay=.1, _delete_=True)}, True),
    'SGD': ({'optim_wrapper.optimizer': dict(
        type='SGD', lr=1e-3, momentum=.9, nesterov=True, weight_decay=.1,
        _delete_=True)}, True),
    'Adam': ({'optim_wrapper.optimizer': dict(
        type='Adam', lr=1e-3, amsgrad=True, weight_decay=.1,
        _delete_=True)}, True),
    'clipped by value': ({'optim_wrapper.clip_grad': dict(
        type='value', clip_value=1e-3, _delete_=True)}, True),
    'groups': ({'optim_wrapper.paramwise_cfg': dict(
        custom_keys={'head.fc': dict(lr_mult=3., decay_mult=0.)})}, True),
    'layer decay': ({'optim_wrapper': dict(
        type='OptimWrapper', optimizer=dict(
            type='AdamW', lr=1e-3, weight_decay=.1),
        constructor='LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=.5))}, True),
    'another head': ({'model.head': dict(
        type='ArcFaceClsHead', num_classes=3, in_channels=16)}, False),
    'a loss of each row': ({'model.head.loss': dict(
        type='CrossEntropyLoss', reduction='none')}, True),
    'a loss that learns': ({'model.head.loss': dict(type='_Learns')}, False),
}
if 'decoupled_weight_decay' in torch.optim.Adam(
        [torch.zeros(())]).defaults:  # torch 2.7
    VARIANTS['Adam, decoupled'] = {'optim_wrapper.optimizer': dict(
        type='Adam', lr=1e-3, decoupled_weight_decay=True, weight_decay=10.,
        _delete_=True)}, True


@pytest.mark.parametrize('variant', VARIANTS)
def test_heads_trained_at_once_end_as_each_alone(tmp_path, variant):
    options, linear = VARIANTS[variant]
    train, val = small_stores(tmp_path)
    # ten equal ones, and two others, that must not disturb them
    settings = {str(i): dict(lr=1e-3) for i in range(10)}
    settings.update(fast=dict(lr=1e-2), off=dict(lr=1e30))
    model, cfg = digits({**SIXTEEN, **options})
    start = copy.deepcopy(model.state_dict())
    rows, val_rows = (Rows([store], CPU) for store in (train, val))
    together = Candidates(probe_model(model), len(settings))
    assert together.linear is linear
    run = _Run(cfg, 3)
    run.train(together, settings, rows)
    for index in (0, 9, 10):
        alone, cfg = digits({**SIXTEEN, **options})
        alone.load_state_dict(start)
        one = probe_model(alone)
        wrapper = copy.deepcopy(cfg.optim_wrapper)
        wrapper.optimizer.update(list(settings.values())[index])
        wrapper = build_optim_wrapper(one, wrapper)
        wrapper.initialize_count_status(one, 0, 18)
        schedule = Schedule(cfg.param_scheduler, wrapper.optimizer, 12 * 6, 6,
                            18)
        one.train()
        torch.manual_seed(0)
        batches = Batches(cfg.train_dataloader, rows, 0)
        for step, chosen in enumerate(
                b for epoch in range(3) for b in batches.of(epoch)):
            schedule.apply(step)
            x, y = rows.take(chosen)
            wrapper.update_params(one.parse_losses(one.loss(x, [
                DataSample().set_gt_label(label) for label in y]))[0])
        for name, value in together.models[index].state_dict().items():
            torch.testing.assert_close(value, one.state_dict()[name],
                                       msg=lambda m, n=name: f'{n}: {m}')
        together.train(False)
        torch.testing.assert_close(
            together.logits(val_rows.take(torch.arange(48))[0])[:, index],
            one.eval().head(one.extract_feat(
                val_rows.take(torch.arange(48))[0])))
    if linear:
        assert (one.head.fc.weight - start['head.fc.weight']
                ).abs().max() > 1e-3
        assert together.diverged()[11] or together.models[
            11].head.fc.weight.abs().max() > 1e20


METRICS = {
    'accuracy': [dict(type='Accuracy', topk=(1, 2), thrs=(0., .34, None)),
                 dict(type='Accuracy', topk=(1, ), prefix='own')],
    'another': [dict(type='Accuracy', topk=(1, )),
                dict(type='SingleLabelMetric', prefix='own',
                     items=('precision', 'recall', 'support'))],
}


@pytest.mark.parametrize('kind', METRICS)
def test_metrics_are_those_of_the_host_to_the_last_digit(
        tmp_path, kind, monkeypatch):
    monkeypatch.setattr('gap_plugin.probing.metrics._BLOCK', 1)
    _, val = small_stores(tmp_path)
    model, _ = digits(SIXTEEN)
    rows = Rows([val], CPU, dict(classes='abc'))
    trained = Candidates(probe_model(model), 3)
    for one in trained.models:
        torch.nn.init.normal_(one.head.fc.weight)
    found = evaluate(METRICS[kind], trained, rows, 47)  # and one of one row
    assert found[0] != found[1] != found[2]
    for one, ours in zip(trained.models, found, strict=True):
        evaluator = Evaluator(copy.deepcopy(METRICS[kind]))
        evaluator.dataset_meta = rows.metainfo
        for chosen in torch.arange(48).split(47):
            x, labels = rows.take(chosen)
            evaluator.process(one.predict(x, [
                DataSample().set_gt_label(label) for label in labels]))
        assert ours == evaluator.evaluate(48)


def test_a_picture_hook_and_a_chosen_kernel_are_no_hindrance(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits({
        **SIXTEEN, 'default_hooks.visualization': dict(
            type='VisualizationHook', enable=True, interval=1),
        'optim_wrapper.optimizer.foreach': True})
    result = probe(model, cfg, train, val, epochs=1)
    assert result.metrics['accuracy/top1'] == pytest.approx(
        top1(model, val), abs=1e-3)


@pytest.mark.parametrize('select', ['cv', 'val'])
def test_the_best_setting_is_kept(tmp_path, select):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    settings = grid([1e-9, 1e-2, 1e38], [0., 0.1])
    assert list(settings) == [
        f'lr={lr},weight_decay={d}' for lr in ('1e-09', '0.01', '1e+38')
        for d in ('0', '0.1')]
    result = probe(model, cfg, train, val, epochs=8, settings=settings,
                   test=val, select=select, fold_count=3)
    values = {(row['lr'], row['weight_decay']): row for row in result.table}
    assert len(values) == 6
    assert np.isnan(values[1e38, 0.1]['value'])
    (kept, ) = [row for row in result.table if row['kept']]
    assert kept['lr'] == result.setting['lr'] == 1e-2
    assert kept['value'] > values[1e-9, 0.]['value'] + 10
    if select == 'val':
        assert result.metrics['accuracy/top1'] == kept['value']
    else:
        assert kept['split'] == 'train, 3 folds' and kept['std'] > 0
    assert result.test_metrics == result.metrics
    # the model has the weights that the metrics are of
    assert result.metrics['accuracy/top1'] == pytest.approx(
        top1(model, val), abs=1e-3)


@pytest.mark.parametrize('select', ['cv', 'val'])
def test_a_setting_without_norm_is_a_config_without_norm(tmp_path, select):
    train, val = small_stores(tmp_path)
    cases = []
    for neck, settings in (
            (SIXTEEN['model.neck'], grid([1e-9, 1e-2], None, [False, True])),
            ([dict(type='GAPNeck')], grid([1e-9, 1e-2], None))):
        model, cfg = digits({**SIXTEEN, 'model.neck': neck})
        torch.manual_seed(0)
        torch.nn.init.normal_(model.head.fc.weight, std=.01)
        result = probe(model, cfg, train, val, epochs=4, fold_count=3,
                       select=select, settings=settings)
        # the model, whatever it is built from, is what was trained
        assert result.metrics['accuracy/top1'] == pytest.approx(
            top1(model, val), abs=1e-3)
        cases.append(result)
    of_both, of_plain = cases
    rows = [{key: value for key, value in row.items() if key != 'kept'}
            for row in of_both.table]
    for row in of_plain.table:
        del row['kept']
        assert dict(row, norm=False) in rows
    assert len(rows) == 4
    values = {row['norm']: row['value'] for row in rows if row['lr'] == 1e-2}
    assert values[True] != values[False]  # as good, or one is chosen
    assert of_both.setting['norm'] is (values[True] > values[False])


def test_a_model_without_its_norm_gives_what_was_trained(tmp_path):
    train, val = small_stores(tmp_path)
    logits = []
    for neck, norms in ((SIXTEEN['model.neck'], [False]),
                        ([dict(type='GAPNeck')], None)):
        model, cfg = digits({**SIXTEEN, 'model.neck': neck})
        torch.manual_seed(0)
        torch.nn.init.normal_(model.head.fc.weight, std=.01)
        probe(model, cfg, train, val, epochs=4,
              settings=grid([1e-2], None, norms))
        features = torch.from_numpy(np.array(val.features))
        logits.append(model.eval().head(model.neck((features, ))))
        assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(*logits)


def test_a_norm_that_is_not_there_cannot_be_left_out(tmp_path):
    train, _ = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'model.neck': [dict(type='GAPNeck')]})
    with pytest.raises(ValueError, match='norm=False .* has none'):
        probe(model, cfg, train, None, epochs=1,
              settings=grid(None, None, [False]))
    assert norm_of(model) is None and norm_of(digits()[0]) is not None


def test_a_probe_that_diverges_is_an_error(tmp_path):
    train, _ = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    with pytest.raises(ValueError, match='diverged.*smaller lr'):
        probe(model, cfg, train, None, epochs=3, settings=grid([1e38], None))


def top1(model, store):
    model.eval()
    features = torch.from_numpy(np.array(store.features))
    found = model.head(model.neck((features, ))).argmax(1).numpy()
    return (found == store.labels).mean() * 100


def test_cross_validation_never_looks_at_the_validation_split(tmp_path):
    train, val = small_stores(tmp_path)
    weights, tables = [], []
    for labels in (val.labels, (val.labels + 1) % 3):
        val.labels = labels
        model, cfg = digits(SIXTEEN)
        torch.manual_seed(0)
        torch.nn.init.normal_(model.head.fc.weight, std=.01)
        result = probe(model, cfg, train, val, epochs=4, fold_count=3,
                       settings=grid([1e-3, 1e-2], None))
        weights.append(model.head.fc.weight.detach())
        tables.append(result.table)
    assert tables[0] == tables[1]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    with pytest.raises(ValueError, match='49 folds'):
        probe(model, cfg, train, val, epochs=1, fold_count=49,
              settings=grid([1e-3, 1e-2], None))
    with pytest.raises(ValueError, match='epochs=0 must be 1'):
        probe(model, cfg, train, None, epochs=0)
    with pytest.raises(ValueError, match="select='val' and no validation"):
        probe(model, cfg, train, None, epochs=1, select='val')


def test_folds_are_alike_and_keep_an_image_together():
    labels = np.random.default_rng(0).integers(0, 4, 103)
    names = np.array([f'{i}.png' for i in range(103)])
    found = folds(labels, names, 5, 0)
    for label in range(4):
        counts = np.bincount(found[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    twice = folds(np.tile(labels, 2), np.tile(names, 2), 5, 0)
    np.testing.assert_array_equal(twice[:103], twice[103:])
    assert (folds(labels, names, 5, 1) != found).any()
    scores = np.eye(4, dtype=np.float32)[labels]
    assert np.bincount(folds(scores, names, 5, 0)).tolist() == [
        21, 21, 21, 20, 20]


def test_data_that_folds_cannot_be_made_of_is_named(tmp_path):
    labels = [0] * 25 + [1] * 22 + [2]  # one image of a class, five folds
    centres = 0.7 * np.random.default_rng(2).normal(size=(3, 16))
    rare = fake_store(tmp_path / 'rare', labels, centres=centres)
    settings = grid([1e-3, 1e-2], None)
    model, cfg = digits(SIXTEEN)
    result = probe(model, cfg, rare, None, epochs=2, settings=settings)
    assert result.setting['lr'] == 1e-2
    assert logistic(rare, rare)['cv'] > 60
    one = fake_store(tmp_path / 'one', [0] * 10 + [1])
    with pytest.raises(ValueError, match='make 12 folds: ask for fewer; or'):
        logistic(one, one, 12)
    with pytest.raises(ValueError, match='without one of the folds, all'):
        logistic(one, one)
    several = fake_store(tmp_path / 'several', np.eye(3)[labels], 16)
    multi = {**SIXTEEN, 'model.head': dict(
        type='MultiLabelLinearClsHead', num_classes=3, in_channels=16)}
    model, cfg = digits(multi)
    cfg.val_evaluator = dict(type='AveragePrecision')
    result = probe(model, cfg, several, several, epochs=2, settings=settings)
    assert result.table[0]['metric'] == 'multi-label/mAP'
    cfg.val_evaluator = dict(type='Accuracy')
    with pytest.raises(ValueError, match="needs 'gt_label', which these"):
        probe(model, cfg, several, None, epochs=2, settings=settings)


def test_the_interval_is_wilsons():
    # 81 of 100: by hand from the formula
    found = interval('accuracy/top1', 81., 100)
    assert found['low'] == pytest.approx(72.22, abs=.01)
    assert found['high'] == pytest.approx(87.49, abs=.01)
    assert interval('accuracy/top1', 100., 10)['high'] == pytest.approx(100)
    assert interval('loss', 81., 100) == {}


@pytest.mark.parametrize('dropout', [0., 0.5])
def test_a_probe_once_more_gives_the_same(tmp_path, dropout):
    train, val = small_stores(tmp_path)
    results = []
    for _ in range(2):
        model, cfg = digits({**SIXTEEN, 'model.head': dict(
            SIXTEEN['model.head'], dropout=dropout)})
        results.append(probe(model, cfg, train, val, epochs=3,
                             settings=grid([1e-4, 1e-2], None)))
    assert results[0] == results[1]


def test_what_of_a_config_is_not_done_is_named(tmp_path, monkeypatch):
    train, val = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'custom_hooks': [
        dict(type='EMAHook'), dict(type='PreciseBNHook', num_samples=8),
        dict(type='ClassNumCheckHook')],
        'optim_wrapper.type': 'AmpOptimWrapper',
        'param_scheduler': dict(type='ReduceOnPlateauLR', monitor='loss'),
        'model.train_cfg': dict(augments=dict(type='Mixup', alpha=.8))})
    told = []
    monkeypatch.setattr('gap_plugin.probing.optimiser.print_log',
                        lambda text, *_: told.append(text))
    probe(model, cfg, train, val, epochs=1)
    (line, ) = told
    assert re.search(r'left out of the probe: EMAHook, PreciseBNHook, '
                     r'ClassNumCheckHook, .*augments.*AmpOptimWrapper, '
                     r'ReduceOnPlateauLR', line)


def test_the_visualizer_of_the_config_gets_the_curves(tmp_path, monkeypatch):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    cfg.visualizer = dict(type='UniversalVisualizer', vis_backends=[
        dict(type='LocalVisBackend')])
    closed = []
    monkeypatch.setattr(LocalVisBackend, 'close',
                        lambda self: closed.append(self))
    known = dict(Visualizer._instance_dict)
    state = torch.manual_seed(7).get_state()
    result = probe(model, cfg, train, val, epochs=3, work_dir=tmp_path / 'w')
    # nothing is left behind
    assert torch.equal(torch.get_rng_state(), state)
    assert Visualizer._instance_dict == known and len(closed) == 1
    (path, ) = (tmp_path / 'w').rglob('scalars.json')
    rows = list(map(json.loads, path.read_text().splitlines()))
    assert [row['step'] for row in rows] == [1, 2, 3]
    assert rows[-1]['accuracy/top1'] == result.metrics['accuracy/top1']
    assert all(row['loss'] > 0 and row['lr'] >= 0 for row in rows)


def test_settings_that_are_not_given_are_the_optimisers_own(tmp_path):
    train, val = small_stores(tmp_path)
    for optimizer, given in ((dict(type='Rprop', lr=1e-3), None),
                             (dict(type='Adam'), None),
                             (dict(type='Adam'), [1e-3, 1e-2])):
        model, cfg = digits(SIXTEEN)
        cfg.optim_wrapper.optimizer = optimizer
        result = probe(model, cfg, train, val, epochs=1,
                       settings=grid(given, None))
        assert 'weight_decay' not in result.setting
        assert len(result.table) == (2 if given else 1)
        assert ('lr' in result.setting) is ('lr' in optimizer
                                            or bool(given))


@MODELS.register_module()
class _OwnLoss(ImageClassifier):

    def loss(self, inputs, data_samples):
        found = super().loss(inputs, data_samples)
        return dict(found, own_loss=0 * found['loss'] + 7.)


@pytest.mark.parametrize('settings', [None, [1e-3, 1e-2]])
def test_a_classifier_with_a_loss_of_its_own_keeps_it(tmp_path, settings):
    train, val = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'model.type': '_OwnLoss'})
    cfg.visualizer = dict(type='UniversalVisualizer', vis_backends=[
        dict(type='LocalVisBackend')])
    probe(model, cfg, train, val, epochs=1, work_dir=tmp_path / 'w',
          settings=grid(settings, None))
    (log, ) = (tmp_path / 'w').rglob('scalars.json')
    assert '"own_loss": 7.0' in log.read_text()


def test_another_width_is_named(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'model.neck': [
        dict(type='GAPNeck'), dict(type='BNNeck', in_channels=20)]})
    with pytest.raises(ValueError, match='BNNeck has in_channels=20, but is '
                       'given 16'):
        probe(model, cfg, train, val, epochs=1)


def test_views_of_other_images_are_refused(tmp_path):
    views = small_stores(tmp_path)
    for i, view in enumerate(views):
        view.fingerprint['data'] = str(i)
    model, cfg = digits(SIXTEEN)
    with pytest.raises(ValueError, match='views are not of the same images'):
        probe(model, cfg, views, None, epochs=1)


@pytest.mark.parametrize('rates, decays, message', [
    ([0.], None, '0.0 is no learning rate'),
    ([1e-3], [-1.], '-1.0 is no weight decay'),
    ([float('nan')], None, 'nan is no learning rate'),
    ([1e-3, 1e-3], None, 'given twice')])
def test_wrong_settings_are_named(rates, decays, message):
    with pytest.raises(ValueError, match=message):
        grid(rates, decays)


def test_knn_and_few_shot(tmp_path, monkeypatch):
    train, val = small_stores(tmp_path)
    # by hand: weights exp(s / 0.07) of the k most similar
    unit = [np.array(s.features) / np.linalg.norm(
        s.features, axis=1, keepdims=True) for s in (train, val)]
    similar = unit[1] @ unit[0].T
    for row in knn(train, val, [1, 5]):
        nearest = np.argsort(-similar, axis=1)[:, :row['k']]
        votes = np.zeros((len(val), 3))
        for i, j in np.ndindex(*nearest.shape):
            votes[i, train.labels[nearest[i, j]]] += np.exp(
                similar[i, nearest[i, j]] / 0.07)
        assert row['top1'] == pytest.approx(
            (votes.argmax(1) == val.labels).mean() * 100)
    rows = few_shot(train, val, [1, 8])
    assert rows == few_shot(train, val, [1, 8])
    assert rows != few_shot(train, val, [1, 8], seed=1)
    assert rows[1]['top1'] > rows[0]['top1'] > 34
    known = knn(train, val, [1, 5, 48])
    for name in ('_KNOWN', '_ROWS'):
        monkeypatch.setattr(f'gap_plugin.probing.neighbours.{name}', 7)
    assert known == knn(train, val, [1, 5, 48])
    once, twice = (knn(train, val, counts)[-1] for counts in ([5], [5, 5]))
    assert once == twice
    with pytest.raises(ValueError, match='knn=49: .* 48 training images'):
        knn(train, val, [49])
    with pytest.raises(ValueError, match=r'shots=40: .* \d+ training '
                       'images of class'):
        few_shot(train, val, [40])
    row = logistic(train, val, 3)
    assert row == logistic(train, val, 3)
    assert row['top1'] > rows[0]['top1'] and row['cv'] > 34
    several = fake_store(tmp_path / 'm', np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match='one label an image'):
        knn(several, val, [1])


def test_views_are_augmented_and_the_same_again(tmp_path):
    model, cfg = digits(FROZEN)
    features = {}
    for name, view in (('plain', None), ('0', 0), ('1', 1), ('again', 0)):
        before = np.random.get_state()[1]
        features[name] = np.array(extract(
            model, cfg, 'train', tmp_path / name, view=view).features)
        np.testing.assert_array_equal(before, np.random.get_state()[1])
    np.testing.assert_array_equal(features['0'], features['again'])
    assert np.abs(features['0'] - features['plain']).max() > 0.1
    assert np.abs(features['0'] - features['1']).max() > 0.1
    with pytest.raises(ValueError, match='view 0 against 1 now'):
        extract(model, cfg, 'train', tmp_path / '0', view=1)


def test_each_epoch_takes_the_next_view(tmp_path):
    stores = [fake_store(tmp_path / str(i), range(21)) for i in range(2)]
    for i, store in enumerate(stores):
        store.features = np.full((21, 16), i) + np.arange(21)[:, None] * 10
    rows = Rows(stores, CPU)
    batches = Batches(dict(batch_size=8), rows, 0)
    assert len(batches) == 3
    for epoch in range(4):
        found = [rows.take(b, epoch) for b in batches.of(epoch)]
        x, labels = (torch.cat(part) for part in zip(*found, strict=True))
        assert x[:, 0].tolist() == (labels * 10 + epoch % 2).tolist()
        assert sorted(labels.tolist()) == list(range(21))


def test_a_sampler_without_end_gives_full_batches_one_after_another(tmp_path):
    store = fake_store(tmp_path / 'train', range(21))
    loader = dict(batch_size=8, sampler=dict(type='InfiniteSampler'))
    rows = Rows([store], CPU)
    batches = Batches(loader, rows, 0)
    found = [b for epoch in range(2) for b in batches.of(epoch)]
    assert [len(b) for b in found] == [8] * 6
    sampler = DATA_SAMPLERS.build(
        loader['sampler'], default_args=dict(dataset=range(21), seed=0))
    assert torch.cat(found).tolist() == list(itertools.islice(sampler, 48))
    batches = Batches(dict(batch_size=8, num_batch_per_epoch=2), rows, 0)
    assert sorted(torch.cat([*batches.of(0)]).tolist()) == list(range(16))
    some = rows.subset(np.arange(5, 21)).subset(np.array([2, 0]))
    assert some.labels.tolist() == [7, 5]


EVALUATORS = {
    'as an evaluator': dict(metrics=[dict(type='Accuracy', topk=(1, ))]),
    'with a matrix': [dict(type='ConfusionMatrix'),
                      dict(type='SingleLabelMetric', average=None),
                      dict(type='Accuracy', topk=(1, ))],
}


@pytest.mark.parametrize('kind', EVALUATORS)
@pytest.mark.parametrize('select', ['cv', 'val'])
def test_an_evaluator_of_any_form_chooses_by_a_number(tmp_path, kind, select):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    cfg.val_evaluator = EVALUATORS[kind]
    # the first one diverges
    result = probe(model, cfg, train, val, epochs=2, fold_count=3,
                   select=select, work_dir=tmp_path / 'w',
                   settings=grid([1e38, 1e-2], None))
    assert {row['metric'] for row in result.table} == {'accuracy/top1'}
    assert result.setting['lr'] == 1e-2
    told = probe_rows(result, dict(train=48, val=48))
    assert all(isinstance(row['value'], float) for row in told)
    (log, ) = (tmp_path / 'w').rglob('scalars.json')
    assert 'accuracy/top1' in log.read_text()
    if kind == 'with a matrix':
        assert result.metrics['confusion_matrix/result'].shape == (3, 3)


@pytest.mark.parametrize('key', [
    'optim_wrapper', 'train_cfg', 'val_evaluator', 'test_evaluator'])
def test_what_a_config_lacks_is_named(tmp_path, key):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    cfg[key] = None
    with pytest.raises(ValueError, match=f'the config has no {key}'):
        probe(model, cfg, train, None, epochs=1, test=val,
              settings=grid([1e-3, 1e-2], None))


@EVALUATOR.register_module()
class Twice(Evaluator):
    """Every metric, times two."""

    def evaluate(self, size):
        return {key: 2 * value for key, value in super().evaluate(
            size).items()}


def test_an_evaluator_of_ones_own_evaluates(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    cfg.test_evaluator = dict(type='Twice', metrics=cfg.val_evaluator)
    result = probe(model, cfg, train, val, epochs=1, test=val)
    assert result.test_metrics == {
        key: 2 * value for key, value in result.metrics.items()}


def test_settings_are_chosen_without_a_validation_split(tmp_path):
    train, _ = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    cfg.val_dataloader = cfg.val_cfg = None
    for key in ('param_scheduler', 'randomness', 'default_hooks',
                'visualizer'):
        cfg.pop(key)
    result = probe(model, cfg, train, None, epochs=1, fold_count=3,
                   settings=grid([1e-9, 1e-2], None))
    assert result.metrics == {} and result.setting['lr'] == 1e-2


@pytest.mark.parametrize('hook, metrics, expected', [
    (dict(save_best='auto'), dict(list=[1, 2], top1=3.), ('top1', 3.)),
    (dict(save_best=False), dict(loss=3.), ('loss', -3.)),
    (dict(save_best=['b', 'a'], rule=['less', 'greater']),
     dict(a=1., b=2.), ('b', -2.)),
    (dict(save_best='error', less_keys=['err']), dict(error=2.),
     ('error', -2.)),
    (dict(save_best='loss', rule='greater'), dict(loss=torch.tensor(2.)),
     ('loss', 2.)),
    (None, dict(a=float('nan')), ('a', -float('inf')))])
def test_what_is_chosen_by_is_what_checkpoints_are_the_best_of(
        hook, metrics, expected):
    score = Score(Config(dict(default_hooks=dict(checkpoint=hook))))
    value = score(metrics)
    assert (score.metric, value) == expected
    with pytest.raises(ValueError, match='numbers that the evaluator gives'):
        score(dict(other=1.))


def test_the_learning_rate_is_scaled_where_the_runner_scales_it():
    model, cfg = digits({**SIXTEEN, 'auto_scale_lr': dict(
        base_batch_size=64, enable=True)})
    trained = Candidates(probe_model(model), 2)
    wrapper = optimiser(trained, cfg, [dict(lr=.1), dict(lr=.2)])
    assert {group['lr'] for group in wrapper.optimizer.param_groups} == {
        .1 / 8, .2 / 8}


def test_a_lone_row_of_a_fold_spoils_no_cross_validation(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'train_dataloader.batch_size': 31,
                         'train_dataloader.drop_last': False})
    # 48 rows make folds of 16: 32 are left, one more than a batch
    probe(model, cfg, train, val, epochs=1, fold_count=3,
          settings=grid([1e-3, 1e-2], None))


@pytest.mark.parametrize('count', [2, 5])
def test_a_batch_of_all_images_allows_a_cross_validation(tmp_path, count):
    # as new-config writes it for few images
    train, val = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'train_dataloader.batch_size': 48,
                         'train_dataloader.drop_last': True})
    result = probe(model, cfg, train, val, epochs=2, fold_count=count,
                   settings=grid([1e-3, 1e-1], None))
    assert result.setting['lr'] == 1e-1
    assert result.table[1]['value'] > 60


def test_a_rate_that_the_schedule_writes_over_is_refused(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'param_scheduler': [dict(
        type='OneCycleLR', eta_max=1e-2, total_steps=12)]})
    for settings in (grid([1e-3], None), grid([1e-3, 1e-2], [0., .1])):
        with pytest.raises(ValueError, match='sets lr by its own eta_max'):
            probe(model, cfg, train, val, epochs=2, settings=settings)
    probe(model, cfg, train, val, epochs=2, settings=grid(None, [0., .1]))


def test_flags_that_contradict_each_other_are_named():
    for given, told in ((['--select', 'val'], '--select val'),
                        (['--knn', '5'], '--knn'),
                        (['--grid', '--lr', '1'], '--grid')):
        args = flags().parse_args([str(DIGITS), '--no-validate', *given])
        with pytest.raises(ValueError, match=told):
            check_flags(args)


def test_the_epoch_that_is_kept_is_told(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    result = probe(model, cfg, train, val, epochs=30, select='val',
                   settings=grid([1e-2, 3e-2], None))
    (kept, ) = [row for row in result.table if row['kept']]
    assert kept['value'] == max(row['value'] for row in result.table)
    assert result.epoch == kept['epoch'] < 30
