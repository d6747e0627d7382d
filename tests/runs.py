"""Models and short runs of MMEngine's runner, on a few images."""

import itertools

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from commands import DIGITS

_count = itertools.count()

#: Checkpoints that are whole, one of them the best.
HOOKS = dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1,
                             max_keep_ckpts=1, save_best='auto'))

PIPELINE = [dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]


def model(network='test_resnet', **backbone):
    """A classifier of ten digits, as a config."""
    return dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name=network,
                      **{'img_size': 32, **backbone}),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type='LinearHead', num_classes=10))


def data(split, count=32, batch_size=8, pipeline=PIPELINE):
    """A dataloader of the first digits of a split, as a config."""
    return dict(
        batch_size=batch_size, num_workers=0, persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='Digits', split=split, indices=count,
                     pipeline=pipeline))


def runner(work_dir, epochs=1, **changes):
    """A runner whose settings can each be replaced."""
    settings = dict(
        model=model(), train_dataloader=data('train'),
        val_dataloader=data('test'),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        randomness=dict(seed=0), default_scope='mmpretrain',
        visualizer=dict(type='UniversalVisualizer',
                        vis_backends=[dict(type='LocalVisBackend')]))
    settings.update(changes)
    return Runner(work_dir=str(work_dir),
                  experiment_name=f'run_{next(_count)}', **settings)


def digits(options=()):
    """The model of the first config of the README, and that config."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(DIGITS)
    for key, value in dict(options).items():
        if '.' in key:
            cfg.merge_from_dict({key: value})
        else:
            cfg[key] = value
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg[name] is not None:
            cfg[name].setdefault('collate_fn',
                                 dict(type='default_collate'))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model, cfg


def predicted(model, loader):
    """What a model predicts of each sample, without an evaluator."""
    model.eval()
    with torch.no_grad():
        return [sample for batch in loader
                for sample in model.test_step(batch)]


def top1(model, loader):
    """Accuracy in percent, counted here."""
    right = [int(sample.pred_score.argmax()) == int(sample.gt_label)
             for sample in predicted(model, loader)]
    return 100 * sum(right) / len(right)


def mean_precision(model, loader):
    """Mean of the average precision of each class, in percent.

    A class that no image shows counts as zero.
    """
    samples = predicted(model, loader)
    scores = torch.stack([sample.pred_score for sample in samples])
    truth = torch.stack([sample.gt_score for sample in samples])
    found = []
    for score, right in zip(scores.T, truth.T, strict=True):
        right = right[score.argsort(descending=True)]
        ranks = torch.arange(1, len(right) + 1)
        precision = right.cumsum(0) / ranks
        found.append((precision * right).sum() / right.sum().clamp(min=1))
    return 100 * float(sum(found)) / len(found)
