"""Neck and head of a config, trained on stored features by MMEngine."""

import copy
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from .extraction import FixedPart, check_labels
from .store import FeatureStore


class KeepBest(CheckpointHook):
    """Keeps the last epoch, to go on from, and the best one, through a kill.

    MMEngine's own hook writes over its files in place, takes the former best
    one away before the new one is there, and saves an epoch ahead of its
    validation: a run that is killed may lose its best epoch. Here both files
    are renamed into place, after the validation. A run that goes on is the
    same run, so that a best file newer than the last epoch does no harm.

    Args:
        save_best: Metric to choose by; ``'auto'`` for the first one.
        rule: ``'greater'``, ``'less'``, or None to infer it.
        seconds: How often the last epoch is kept, at most.
        made_by: What the run depends on, kept along with it.
    """

    LAST, BEST = 'last.pth', 'best.pth'

    def __init__(self, save_best: str = 'auto', rule: str | None = None,
                 seconds: float = 5.,
                 made_by: dict[str, Any] | None = None) -> None:
        super().__init__(save_best=save_best, rule=rule)
        self.made_by = made_by
        self.seconds = seconds
        self._kept = 0.

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Nothing: epochs are kept."""

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep an epoch that is not validated."""
        if runner.val_loop is None:
            self._keep(runner, runner.epoch + 1)

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float]) -> None:
        """Keep the epoch if it is the best one, and as the last one."""
        if self.key_indicators == ['auto']:
            self._init_rule(self.rules, [next(iter(metrics))])
        (key, ) = self.key_indicators
        if key not in metrics:
            raise ValueError(
                f'save_best of the checkpoint hook is {key!r}, but the '
                f'evaluator gives {", ".join(metrics)}.')
        known = runner.message_hub.runtime_info
        score = float(metrics[key])
        if 'best_score' not in known or self.is_better_than[key](
                score, known['best_score']):
            runner.message_hub.update_info('best_score', score)
            self._write(runner, self.BEST, runner.epoch)
        self._keep(runner, runner.epoch)

    def _keep(self, runner: Runner, epoch: int) -> None:
        now = time.monotonic()
        if (now - self._kept >= self.seconds
                or epoch == runner.max_epochs):
            self._write(runner, self.LAST, epoch)
            self._kept = now

    def _write(self, runner: Runner, name: str, epoch: int) -> None:
        runner.save_checkpoint(
            self.out_dir, f'{name}.tmp', by_epoch=False,
            meta=dict(epoch=epoch, iter=epoch * len(runner.train_dataloader),
                      made_by=self.made_by),
            save_optimizer=name == self.LAST,
            save_param_scheduler=name == self.LAST)
        path = Path(self.out_dir) / name
        os.replace(f'{path}.tmp', path)


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


class FeatureBatches(Dataset):
    """Whole batches of a store, by arrays of row indices.

    Args:
        store: The features.
        metainfo: Of the dataset behind them, for the evaluators.
        whole: Whether the labels of a batch come as one sample, which the
            losses concatenate to the same vector as that of its images.
    """

    def __init__(self, store: FeatureStore, metainfo: dict,
                 whole: bool) -> None:
        self.store, self.metainfo, self.whole = store, metainfo, whole
        self.labels = torch.from_numpy(np.array(store.labels))
        if not whole:
            self._samples = [_sample(label) for label in self.labels]

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, rows: np.ndarray) -> dict[str, Any]:
        features = np.asarray(self.store.features[rows], np.float32)
        samples = ([_sample(self.labels[rows])] if self.whole else
                   [self._samples[row] for row in rows])
        return dict(inputs=torch.from_numpy(features), data_samples=samples)


def _sample(label: torch.Tensor) -> DataSample:
    """Labels as a data sample: class indices, or the scores of one row."""
    if label.is_floating_point():
        return DataSample().set_gt_score(label)
    return DataSample().set_gt_label(label.reshape(-1))


class _RowBatches(Sampler):
    """Arrays of row indices, in the order of MMEngine's DefaultSampler."""

    def __init__(self, rows: int, batch_size: int, shuffle: bool,
                 drop_last: bool, seed: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = torch.arange(self.rows)
        if self.shuffle:
            seeded = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.rows, generator=seeded)
        for i in range(len(self)):
            yield order[i * self.batch_size:(i + 1) * self.batch_size].numpy()


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
    state = {id(p) for p in fixed.parameters()}
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
    if not any(p.requires_grad and id(p) not in state
               for p in short.parameters()):
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
    classes = getattr(model.head, 'num_classes', None)
    for name, store in (('train', train), ('val', val)):
        if store is not None:
            check_labels(np.asarray(store.labels), classes, name)
    augments = (cfg.model.get('train_cfg') or {}).get('augments')
    if augments:
        print_log('batch augmentations of train_cfg mix images and are left '
                  'out of the probe.', 'current', logging.WARNING)
    short = probe_model(model, train.description['in_tuple'])
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    loader = cfg.train_dataloader
    train_loader = _loader(
        train, metainfo, _takes_whole(short, train), loader.batch_size, True,
        loader.get('drop_last', False), seed)
    if not len(train_loader):
        raise ValueError(f'{len(train)} training images give no batch of '
                         f'{loader.batch_size}: set a smaller batch_size.')
    work_dir = Path(work_dir)
    hooks = dict(cfg.get('default_hooks') or {})
    stock = hooks.get('checkpoint') or {}
    save_best = stock.get('save_best')
    hooks['checkpoint'] = KeepBest(
        save_best if isinstance(save_best, str) else 'auto',
        stock.get('rule'), keep_every,
        made_by := dict(train.fingerprint, epochs=epochs))
    last = work_dir / KeepBest.LAST
    resume = resume and last.is_file()
    if resume:
        kept = CheckpointLoader.load_checkpoint(
            str(last), map_location='cpu')['meta']['made_by']
        differing = [key for key in made_by if kept.get(key) != made_by[key]]
        if differing:
            raise ValueError(
                f'{str(last)!r} is of another probe ({differing[0]} '
                f'{str(kept.get(differing[0]))[:80]} against '
                f'{str(made_by[differing[0]])[:80]} now): leave --resume '
                'out, or use another --work-dir.')
    validation = {} if val is None else dict(
        val_dataloader=_loader(
            val, metainfo, False, val.fingerprint['batch_size'], False,
            False, seed),
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


def _loader(store: FeatureStore, metainfo: dict, whole: bool, size: int,
            shuffle: bool, drop_last: bool, seed: int) -> DataLoader:
    return DataLoader(
        FeatureBatches(store, metainfo, whole), batch_size=None,
        collate_fn=_as_it_is,
        sampler=_RowBatches(len(store), size, shuffle, drop_last, seed))


def _as_it_is(batch: dict) -> dict:
    return batch


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
    path = Path(path)
    temporary = path.with_name(f'{path.name}.tmp')
    with open(temporary, 'wb') as file:
        torch.save(dict(meta=meta, state_dict={
            name: value.cpu() for name, value in model.state_dict().items()
        }), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
