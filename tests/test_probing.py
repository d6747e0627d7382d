"""A probe on stored features is the training of the frozen network."""

import copy
import csv
import functools
import re
import signal

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS

from commands import DIGITS, OURS, STOCK, python, reported
from gap_plugin.features import FeatureStore, StoreWriter, extract
from gap_plugin.probing import (
    check_frozen,
    few_shot,
    grid,
    knn,
    probe,
    probe_model,
)
from gap_plugin.probing.batches import (
    FeatureBatches,
    feature_loader,
    takes_whole,
)
from gap_plugin.probing.candidates import Candidates
from gap_plugin.probing.evaluation import BatchEvaluator, build_evaluator
from gap_plugin.probing.schedule import stretched
from kills import KILLS, fork, moments
from networks import full
from runs import digits

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


def test_a_probe_learns_what_frozen_training_from_images_learns(tmp_path):
    # the last epoch of both, without a choice by validation
    options = {**FROZEN, 'val_evaluator': dict(type='Accuracy', topk=(1, )),
               'default_hooks.checkpoint': dict(
                   type='CheckpointHook', interval=1)}
    model, cfg = digits(options)
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
                '--views', 2, '--test')
    assert 'the test images are the validation images' in text
    assert {p.name for p in (tmp_path / 'features').iterdir()} == {
        'train', 'val', 'test', 'view_0', 'view_1'}
    with open(tmp_path / 'linear_probe.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    by = {key: [row for row in rows if (row['method'], row['split']) == key]
          for key in (('probe', 'val'), ('probe', 'test'), ('k-NN', 'val'),
                      ('few-shot', 'val'))}
    assert [len(found) for found in by.values()] == [4, 1, 2, 1]
    assert {(row['lr'], row['weight_decay']) for row in
            by['probe', 'val']} == {
                (lr, decay) for lr in ('0.0001', '0.01')
                for decay in ('0.0', '0.05')}
    (kept, ) = [row for row in by['probe', 'val'] if row['kept'] == 'True']
    assert float(kept['value']) == max(
        float(row['value']) for row in by['probe', 'val'])
    # of one and the same images
    assert float(by['probe', 'test'][0]['value']) == pytest.approx(
        float(kept['value']), abs=1e-3)
    assert [row['k'] for row in by['k-NN', 'val']] == ['5', '20']
    for row in rows:
        assert re.search(rf'{row["method"]} .*{float(row["value"]):.6g}',
                         text), row


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
    features = np.random.default_rng(len(str(folder))).normal(
        size=(len(labels), width)).astype(np.float32)
    if centres is not None:
        features += centres[labels].astype(np.float32)
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
    model, cfg = digits({
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
    assert takes_whole(short, store) is whole
    rows = np.array([3, 1, 20, 7])
    losses = []
    for together in ([True, False] if whole else [False]):
        data = FeatureBatches([store], {}, together)[rows]
        losses.append(short.eval()(**short.data_preprocessor(data),
                                   mode='loss')['loss'])
    torch.testing.assert_close(losses[0], losses[-1], rtol=0, atol=0)
    before = model.head.fc.weight.clone() if kind != 'arcface' else None
    probe(model, cfg, store, None, epochs=2, work_dir=tmp_path / 'w',
          metainfo={})
    if before is not None:
        assert (model.head.fc.weight - before).abs().max() > 0


def test_labels_out_of_range_are_named(tmp_path):
    model, cfg = digits()
    store = fake_store(tmp_path / 'train', [0, 10, 3])
    with pytest.raises(ValueError, match='labels from 0 to 10, but '
                       'num_classes of the head is 10'):
        probe(model, cfg, store, None, epochs=1, work_dir=tmp_path,
              metainfo={})


def test_fewer_rows_than_a_batch_are_named(tmp_path):
    model, cfg = digits()
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


@pytest.mark.parametrize('kills', [KILLS, full(20)])
def test_a_probe_killed_at_any_moment_goes_on_to_the_same_end(
        tmp_path, kills):
    options = {**FROZEN, 'randomness': dict(seed=0)}
    _, metrics = run_probe(options, tmp_path / 'whole', epochs=12)
    stores(*digits(options), tmp_path)

    def work(folder, moment=None):
        return fork(lambda: _probe(options, tmp_path, folder),
                    rf'{folder}/.*\.pth', moment)

    status, count = work(tmp_path / 'count')
    assert status == 0 and count > 24  # an epoch writes a checkpoint
    began = []
    for moment in moments(count, kills):
        folder = tmp_path / 'probe' / str(moment)
        status, _ = work(folder, moment)
        assert status == -signal.SIGKILL
        began.append((folder / 'last.pth').exists())
        found = _probe(options, tmp_path, folder)
        assert found == metrics
    # ahead of all checkpoints, and in mid-training
    assert began == sorted(began) and not began[0] and sum(began) > 1


def test_another_probe_is_not_gone_on_with(tmp_path):
    run_probe(FROZEN, tmp_path, epochs=2)
    with pytest.raises(ValueError, match=r'last\.pth.* is of another probe: '
                       r'epochs 2 against 3 now'):
        run_probe(FROZEN, tmp_path, epochs=3, resume=True)
    run_probe(FROZEN, tmp_path, epochs=2, resume=True)


def _probe(options, stores_in, folder):
    torch.set_num_threads(1)
    model, cfg = digits(options)
    return probe(
        model, cfg, FeatureStore(stores_in / 'train'),
        FeatureStore(stores_in / 'val'), epochs=12, work_dir=folder,
        metainfo=dict(classes='0' * 10), resume=True, keep_every=0)


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
    'another head': ({'model.head': dict(
        type='ArcFaceClsHead', num_classes=3, in_channels=16)}, False),
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_heads_trained_at_once_end_as_each_alone(tmp_path, variant):
    options, fused = VARIANTS[variant]
    options = {**SIXTEEN, **options}
    train, val = small_stores(tmp_path)
    # ten equal ones, and two others, that must not disturb them
    names = [str(i) for i in range(10)] + ['fast', 'off']
    settings = [dict(lr=1e-3)] * 10 + [dict(lr=1e-2), dict(lr=1e30)]
    model, cfg = digits(options)
    candidates = Candidates(probe_model(model), names)
    assert candidates.fused is fused
    wrappers = candidates.optim_wrappers(cfg.optim_wrapper, settings)
    loader = feature_loader([train], {}, True, 8)
    candidates.train()
    for _ in range(3):
        for batch in loader:
            candidates.train_step(batch, wrappers)
    for index in (0, 9, 10):
        alone, cfg = digits(options)
        alone.load_state_dict(model.state_dict())
        one = probe_model(alone)
        assert (one.product is not None) is fused
        one.product = None  # by its neck and head, as from images
        wrapper = Candidates.optim_wrappers(
            _Named([one]), cfg.optim_wrapper, [settings[index]])['one']
        one.train()
        for _ in range(3):
            for batch in loader:
                one.train_step(batch, wrapper)
        for name, value in candidates.members[index].state_dict().items():
            torch.testing.assert_close(value, one.state_dict()[name],
                                       msg=lambda m, n=name: f'{n}: {m}')
        candidates.eval()
        one.eval()
        (batch, ) = feature_loader([val], {}, False, 48)
        scores = [sample['pred_score'] for sample in
                  candidates.val_step(batch)[index]]
        torch.testing.assert_close(
            scores, [s['pred_score'] for s in one.val_step(batch)])
        candidates.train()
    start = model.head.fc.weight if fused else None
    if fused:
        assert (one.head.fc.weight - start).abs().max() > 1e-3
        assert candidates.diverged(11) or candidates.members[
            11].head.fc.weight.abs().max() > 1e20


METRICS = {
    'accuracy': ([dict(type='Accuracy', topk=(1, 2), thrs=(0., .34)),
                  dict(type='SingleLabelMetric', prefix='own',
                       items=('precision', 'recall', 'support'))], True),
    'another': ([dict(type='Accuracy', topk=(1, )),
                 dict(type='ConfusionMatrix')], False),
}


@pytest.mark.parametrize('kind', METRICS)
def test_whole_batches_are_evaluated_as_the_host_does(tmp_path, kind):
    metrics, whole = METRICS[kind]
    _, val = small_stores(tmp_path)
    model, _ = digits(SIXTEEN)
    short = probe_model(model).eval()
    evaluator = build_evaluator(metrics, short, val.labels)
    assert (type(evaluator) is BatchEvaluator) is whole
    found = []
    for evaluate, rows in ((evaluator, whole), (Evaluator(metrics), False)):
        evaluate.dataset_meta = dict(classes='abc')
        for _ in range(2):  # an epoch leaves nothing to the next one
            # the last batch has one row
            for batch in feature_loader([val], {}, rows, 47):
                evaluate.process(short.val_step(batch), batch)
            found.append(evaluate.evaluate(len(val)))
    assert any(key.startswith('accuracy/top1') for key in found[0])
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        for key, value in found[0].items():
            np.testing.assert_array_equal(value, other[key])


def test_a_picture_hook_and_a_chosen_kernel_are_no_hindrance(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits({
        **SIXTEEN, 'default_hooks.visualization': dict(
            type='VisualizationHook', enable=True, interval=1),
        'optim_wrapper.optimizer.foreach': True})
    result = probe(model, cfg, train, val, epochs=1, metainfo={},
                   work_dir=tmp_path / 'w')
    model.eval()
    right = model.head(model.neck((torch.from_numpy(np.array(
        val.features)), ))).argmax(1).numpy() == val.labels
    assert result.metrics['accuracy/top1'] == pytest.approx(
        100 * right.mean(), abs=1e-3)


class _Named:
    names = ['one']

    def __init__(self, members):
        self.members = members


def test_the_best_setting_on_the_validation_split_is_kept(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits(SIXTEEN)
    torch.manual_seed(0)
    settings = grid([1e-9, 1e-2, 1e38], [0., 0.1])
    assert list(settings) == [
        f'lr={lr},weight_decay={d}' for lr in ('1e-09', '0.01', '1e+38')
        for d in ('0', '0.1')]
    result = probe(model, cfg, train, val, epochs=4, work_dir=tmp_path / 'w',
                   metainfo=dict(classes='abc'), settings=settings, test=val)
    values = {(row['lr'], row['weight_decay']): row for row in result.table}
    assert len(values) == 6
    assert np.isnan(values[1e38, 0.1]['value'])
    (kept, ) = [row for row in result.table if row['kept']]
    assert kept['lr'] == 1e-2
    assert kept['value'] > values[1e-9, 0.]['value'] + 10
    assert result.metrics['accuracy/top1'] == pytest.approx(kept['value'])
    assert result.test_metrics == result.metrics
    # the model has the weights that the metrics are of
    model.eval()
    features = torch.from_numpy(np.array(val.features))
    found = model.head(model.neck((features, ))).argmax(1).numpy()
    assert (found == val.labels).mean() * 100 == pytest.approx(
        kept['value'], abs=1e-3)
    with pytest.raises(ValueError, match='6 settings .* no validation'):
        probe(model, cfg, train, None, epochs=4, work_dir=tmp_path / 'x',
              metainfo={}, settings=settings)


@pytest.mark.parametrize('dropout', [0., 0.5])
def test_settings_killed_go_on_to_the_same_table(tmp_path, dropout):
    train, val = small_stores(tmp_path)
    results = []
    options = {**SIXTEEN, 'model.head': dict(
        SIXTEEN['model.head'], dropout=dropout)}
    for name, epochs in (('whole', [6]), ('cut', [3, 6])):
        for until in epochs:
            model, cfg = digits(options)
            if until == 3:  # cut off: its checkpoints are those of 6 epochs
                cfg.custom_hooks = [dict(type=_Cut, at=3)]
            try:
                results.append(probe(
                    model, cfg, train, val, epochs=6,
                    work_dir=tmp_path / name, metainfo=dict(classes='abc'),
                    settings=grid([1e-4, 1e-2], None), resume=True,
                    keep_every=0))
            except KeyboardInterrupt:
                assert until == 3
    assert len(results) == 2
    assert results[0] == results[1]
    ends = [torch.load(tmp_path / name / 'last.pth', weights_only=True)[
        'state_dict'] for name in ('whole', 'cut')]
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], rtol=0, atol=0)


def test_settings_that_are_not_given_are_the_optimisers_own(tmp_path):
    train, val = small_stores(tmp_path)
    for optimizer, given in ((dict(type='Rprop', lr=1e-3), None),
                             (dict(type='Adam'), None),
                             (dict(type='Adam'), [1e-3, 1e-2])):
        model, cfg = digits(SIXTEEN)
        cfg.optim_wrapper.optimizer = optimizer
        result = probe(model, cfg, train, val, epochs=1,
                       work_dir=tmp_path / 'w', metainfo={},
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
    probe(model, cfg, train, val, epochs=1, work_dir=tmp_path / 'w',
          metainfo={}, settings=grid(settings, None))
    (log, ) = (tmp_path / 'w').glob('*/vis_data/scalars.json')
    assert '"own_loss": 7.0' in log.read_text()


def test_another_width_is_named(tmp_path):
    train, val = small_stores(tmp_path)
    model, cfg = digits({**SIXTEEN, 'model.neck': [
        dict(type='GAPNeck'), dict(type='BNNeck', in_channels=20)]})
    with pytest.raises(ValueError, match='BNNeck has in_channels=20, but is '
                       'given 16'):
        probe(model, cfg, train, val, epochs=1, work_dir=tmp_path / 'w',
              metainfo={})


def test_views_of_other_images_are_refused(tmp_path):
    views = small_stores(tmp_path)
    for i, view in enumerate(views):
        view.fingerprint['data'] = str(i)
    model, cfg = digits(SIXTEEN)
    with pytest.raises(ValueError, match='views are not of the same images'):
        probe(model, cfg, views, None, epochs=1, work_dir=tmp_path / 'w',
              metainfo={})


@pytest.mark.parametrize('change, field', [
    ({'train_dataloader.batch_size': 16}, 'train_dataloader'),
    ({'param_scheduler': None}, 'param_scheduler'),
    ({'model.head.loss': dict(type='LabelSmoothLoss',
                              label_smooth_val=.1)}, 'model')])
def test_a_probe_of_other_settings_is_not_gone_on_with(tmp_path, change,
                                                       field):
    train, val = small_stores(tmp_path)
    for options in ({}, change):
        model, cfg = digits({**SIXTEEN, **options})
        run = functools.partial(
            probe, model, cfg, train, val, epochs=1, metainfo={},
            work_dir=tmp_path / 'w', resume=True)
        if not options:
            run()
    with pytest.raises(ValueError, match=f'of another probe: .*{field}'):
        run()


class _Cut(Hook):
    priority = 'LOWEST'

    def __init__(self, at):
        self.at = at

    def after_val_epoch(self, runner, metrics=None):
        if runner.epoch == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize('rates, decays, message', [
    ([0.], None, '0.0 is no learning rate'),
    ([1e-3], [-1.], '-1.0 is no weight decay'),
    ([float('nan')], None, 'nan is no learning rate'),
    ([1e-3, 1e-3], None, 'given twice')])
def test_wrong_settings_are_named(rates, decays, message):
    with pytest.raises(ValueError, match=message):
        grid(rates, decays)


def test_knn_and_few_shot(tmp_path):
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
    with pytest.raises(ValueError, match='knn=49: .* 48 training images'):
        knn(train, val, [49])
    with pytest.raises(ValueError, match=r'shots=40: .* \d+ training '
                       'images of class'):
        few_shot(train, val, [40])
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
    loader = feature_loader(stores, {}, True, 8, shuffle=True)
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        rows = np.concatenate([b['inputs'][:, 0] for b in loader])
        labels = np.concatenate([b['data_samples'][0].gt_label
                                 for b in loader])
        np.testing.assert_array_equal(rows, labels * 10 + epoch % 2)
        assert sorted(labels) == list(range(21))
