"""Neck and head of a config, trained on stored features by MMEngine."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from .batches import FeatureBatches, feature_loader
from .extraction import check_split
from .fixed_part import FixedPart
from .keep_best import KeepBest
from .store import FeatureStore, differing, replacing


class _Stored(nn.Module):
    """Stands where the backbone stood: features come as they are."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self.in_tuple = in_tuple

    def forward(self, x: torch.Tensor) -> Any:
        return (x, ) if self.in_tuple else x


class _Move(BaseDataPreprocessor):
    """Moves a batch to the model's device, and no more."""

    def forward(self, data: dict, training: bool = False) -> dict:
        return self.cast_data(data)


def check_frozen(model: nn.Module) -> None:
    """Refuse a backbone whose features would change in training.

    Raises:
        ValueError: If it has weights that are trained, or norms that follow
            the batches.
    """
    was = model.training
    model.train()
    trained = sum(p.requires_grad for p in model.backbone.parameters())
    moving = sum('running_var' in m._buffers and m.training
                 for m in model.backbone.modules())
    if not was:
        model.eval()
    if trained or moving:
        raise ValueError(
            f'the backbone is not frozen ({trained} parameters are trained, '
            f'{moving} norms follow the batches), so that its features would '
            "not stay: set frozen_stages='all' of TimmFeatureBackbone, or "
            'probe it as it is with --freeze.')


def probe_model(model: nn.Module, in_tuple: bool = True) -> nn.Module:
    """The classifier with stored features in place of its fixed part.

    Its parameters keep their names, and are the model's own.

    Raises:
        ValueError: If nothing of it is left to train.
    """
    fixed = FixedPart(model)
    # shallow: the parts that are trained stay those of the model
    short = copy.copy(model)
    short._modules = dict(model._modules)
    short.backbone = _Stored(in_tuple)
    short.data_preprocessor = _Move()
    if fixed.necks == ['neck']:
        short.neck = nn.Identity()
    elif fixed.necks:
        short.neck = nn.Sequential()
        for name, part in model.neck.named_children():
            short.neck.add_module(
                name,
                nn.Identity() if f'neck.{name}' in fixed.necks else part)
    if not any(p.requires_grad for p in short.parameters()):
        raise ValueError('neither neck nor head of the config has a '
                         'parameter that is trained: give it a head, such '
                         'as LinearHead.')
    return short


def probe(model: nn.Module, cfg: Config, train: FeatureStore,
          val: FeatureStore | None, *, epochs: int, work_dir: str | Path,
          metainfo: dict, resume: bool = False,
          keep_every: float = 5.) -> dict[str, float]:
    """Train neck and head on stored features, with the config's schedule.

    Args:
        model: The classifier, with its weights; its neck and head end up
            with those of the best epoch, or of the last one if there is no
            validation.
        cfg: The config. Its optimiser, schedule (stretched to ``epochs``),
            hooks and evaluator are used.
        train: Features to train on.
        val: Features to validate on after every epoch.
        epochs: How many.
        work_dir: For logs and checkpoints of neck and head alone.
        metainfo: Of the dataset, for the evaluators.
        resume: Whether to go on from the last epoch kept there.
        keep_every: Seconds after which the last epoch is kept again.

    Returns:
        Metrics of the chosen epoch; empty without validation.

    Raises:
        ValueError: If the parts do not fit together.
    """
    for split, store in (('train', train), ('val', val)):
        if store is not None:
            check_split(store.labels, model, split)
    augments = (cfg.model.get('train_cfg') or {}).get('augments')
    if augments:
        print_log('batch augmentations of train_cfg mix images and are left '
                  'out of the probe.', 'current', logging.WARNING)
    short = probe_model(model, train.description['in_tuple'])
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    loader = cfg.train_dataloader
    train_loader = feature_loader(
        train, metainfo, _takes_whole(short, train), loader.batch_size,
        shuffle=True, drop_last=loader.get('drop_last', False), seed=seed)
    if not len(train_loader):
        raise ValueError(f'{len(train)} training images give no batch of '
                         f'{loader.batch_size}: set a smaller batch_size.')
    work_dir = Path(work_dir)
    hooks = dict(cfg.get('default_hooks') or {})
    stock = hooks.get('checkpoint') or {}
    made_by = dict(train.fingerprint, epochs=epochs)
    save_best = stock.get('save_best')
    hooks['checkpoint'] = KeepBest(
        save_best if isinstance(save_best, str) else 'auto',
        stock.get('rule'), keep_every, made_by)
    last = work_dir / KeepBest.LAST
    resume = resume and last.is_file()
    if resume:
        kept = CheckpointLoader.load_checkpoint(str(last), map_location='cpu')
        others = differing(kept['meta']['made_by'], made_by)
        if others:
            raise ValueError(
                f'{str(last)!r} is of another probe: {others}; leave '
                '--resume out, or use another --work-dir.')
    validation = {} if val is None else dict(
        val_dataloader=feature_loader(val, metainfo, False,
                                      val.fingerprint['batch_size']),
        val_cfg=dict(), val_evaluator=cfg.val_evaluator)
    runner = Runner(
        model=short,
        work_dir=str(work_dir),
        train_dataloader=train_loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=stretched(cfg, epochs, len(train_loader)),
        default_hooks=hooks,
        custom_hooks=cfg.get('custom_hooks'),
        load_from=str(last) if resume else None,
        resume=resume,
        visualizer=cfg.get('visualizer'),
        log_level=cfg.get('log_level', 'INFO'),
        randomness=cfg.get('randomness') or {},
        default_scope=cfg.get('default_scope', 'mmpretrain'),
        experiment_name=f'probe_{Path(work_dir).name}',
        cfg=Config(dict(model=cfg.model)),
        **validation)
    runner.train()
    if val is None:
        return {}
    load_checkpoint(short, str(work_dir / KeepBest.BEST), map_location='cpu',
                    strict=True, logger='silent')
    short.eval()
    # apart from the runner's hooks, which would keep it as an epoch
    evaluator = runner.val_evaluator
    with torch.no_grad():
        for batch in runner.val_dataloader:
            evaluator.process(short.val_step(batch), batch)
    return evaluator.evaluate(len(runner.val_dataloader.dataset))


def _takes_whole(model: nn.Module, store: FeatureStore) -> bool:
    """Whether the head's loss is the same for a batch's labels as a whole.

    Asked of the head itself, on a few rows: its loss may look at samples.
    """
    if store.labels.ndim > 1:  # scores of each image
        return False
    rows = np.arange(min(len(store), 4))
    model.eval()
    losses = []
    for whole in (True, False):
        few = FeatureBatches(_Few(store, rows), {}, whole)[rows]
        try:
            with torch.no_grad():
                data = model.data_preprocessor(few)
                losses.append(model(**data, mode='loss'))
        except (IndexError, RuntimeError, TypeError, ValueError):
            if whole:
                return False
            raise
    model.train()
    return losses[0].keys() == losses[1].keys() and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(losses[1][key]))
        for key, value in losses[0].items())


class _Few:
    """The first rows of a store."""

    def __init__(self, store: FeatureStore, rows: np.ndarray) -> None:
        self.features, self.labels = store.features[rows], store.labels[rows]


#: Fields of schedulers that count epochs or iterations.
_COUNTS = ('begin', 'end', 'T_max', 'milestones', 'total_steps', 'step_size',
           'periods')


def stretched(cfg: Config, epochs: int, batches: int) -> list[dict] | None:
    """The config's schedule, stretched or shrunk to a number of epochs."""
    schedule = copy.deepcopy(cfg.get('param_scheduler'))
    if schedule is None:
        return None
    loop = cfg.train_cfg
    own = loop.get('max_epochs') or loop.max_iters / batches
    schedule = schedule if isinstance(schedule, list) else [schedule]
    for one in schedule:
        for key in _COUNTS:
            value = one.get(key)
            if isinstance(value, (list, tuple)):
                one[key] = [round(v * epochs / own) for v in value]
            elif isinstance(value, (int, float)):
                one[key] = round(value * epochs / own)
    return [one for one in schedule
            if one.get('end') is None or one['end'] > one.get('begin', 0)]


def save_whole(model: nn.Module, path: str | Path, meta: dict) -> None:
    """Write an ordinary checkpoint of the whole model, or nothing."""
    with replacing(path) as temporary:
        torch.save(dict(meta=meta, state_dict={
            name: value.cpu() for name, value in model.state_dict().items()
        }), temporary)
