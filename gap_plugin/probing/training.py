"""Neck and head of a config, trained on stored features by MMEngine."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, print_log
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn
from torch.utils.data import DataLoader

from ..features.fixed_part import weights_of
from ..features.images import check_split, refuse_unlabelled
from ..features.store import FeatureStore, differing
from ..files import written_whole
from .batches import feature_loader, takes_whole
from .candidates import Candidates, PerCandidateEvaluator
from .evaluation import BatchEvaluator, build_evaluator
from .keep_best import KeepBest
from .schedule import stretched
from .stored_model import probe_model


@dataclass
class ProbeResult:
    """What a probe has found.

    Attributes:
        metrics: On the validation split, of the kept epoch; empty without
            validation.
        test_metrics: The same weights on the test split; empty without one.
        table: A row per setting of the optimiser: its values, ``metric``
            (which is chosen by), ``value`` and ``epoch`` of its best epoch,
            ``kept``; empty without validation.
        setting: That of the kept weights.
    """

    metrics: dict[str, float]
    test_metrics: dict[str, float]
    table: list[dict[str, Any]]
    setting: dict[str, float]


def probe(model: nn.Module, cfg: Config, train: FeatureStore | list,
          val: FeatureStore | None, *, epochs: int, work_dir: str | Path,
          metainfo: dict, settings: Mapping[str, dict] | None = None,
          test: FeatureStore | None = None, resume: bool = False,
          keep_every: float = 5., hooks: Sequence[Hook] = ()
          ) -> ProbeResult:
    """Train neck and head on stored features, with the config's schedule.

    Args:
        model: The classifier, with its weights; its neck and head end up
            with those of the best epoch, or of the last one if there is no
            validation.
        cfg: The config. Its optimiser, schedule (stretched to ``epochs``),
            hooks and evaluator are used.
        train: Features to train on. Of several stores of the same images,
            such as augmented views, each epoch takes the next.
        val: Features to validate on after every epoch.
        epochs: How many.
        work_dir: For logs and checkpoints of neck and head alone.
        metainfo: Of the dataset, for the evaluators.
        settings: Name -> what of the optimiser is another one, see
            :func:`~gap_plugin.probing.grid`. All are trained at once, and
            the one that is best on ``val`` is kept.
        test: Features to evaluate the kept weights on, once.
        resume: Whether to go on from the last epoch kept there.
        keep_every: Seconds after which the last epoch is kept again.
        hooks: Further ones, such as a progress bar.

    Raises:
        ValueError: If the parts do not fit together.
    """
    views = train if isinstance(train, list) else [train]
    settings = dict(settings or {})
    if len(settings) > 1 and val is None:
        raise ValueError(f'{len(settings)} settings of the optimiser and no '
                         'validation: it is what chooses one of them.')
    if len({view.images for view in views}) > 1:
        raise ValueError('the views are not of the same images: extract them '
                         'again with force=True.')
    for split, store in (('train', views[0]), ('val', val), ('test', test)):
        if store is not None:
            refuse_unlabelled(store.labels, split)
            check_split(store.labels, model, split)
    augments = (cfg.model.get('train_cfg') or {}).get('augments')
    if augments:
        print_log('batch augmentations of train_cfg mix images and are left '
                  'out of the probe.', 'current', logging.WARNING)
    short = probe_model(model, views[0].description['in_tuple'])
    loader = cfg.train_dataloader
    train_loader = feature_loader(
        views, metainfo, takes_whole(short, views[0]), loader.batch_size,
        shuffle=True, drop_last=loader.get('drop_last', False),
        seed=(cfg.get('randomness') or {}).get('seed') or 0)
    if not len(train_loader):
        raise ValueError(f'{len(views[0])} training images give no batch of '
                         f'{loader.batch_size}: set a smaller batch_size.')
    work_dir = Path(work_dir)
    trained, optim_wrapper = _with_optimisers(short, cfg, settings)
    made_by = dict(
        epochs=epochs, settings=str(settings), start=weights_of(short),
        train=[view.fingerprint for view in views],
        val=val and val.fingerprint,
        model={key: str(cfg.model.get(key)) for key in ('neck', 'head')},
        **{key: str(cfg.get(key)) for key in (
            'train_dataloader', 'optim_wrapper', 'param_scheduler',
            'val_evaluator', 'randomness')})
    keep = _keeper(cfg, keep_every, made_by, list(settings))
    last = work_dir / KeepBest.LAST
    resume = resume and last.is_file()
    if resume:
        _check_resumed(last, made_by)
    validation = {}
    if val is not None:
        evaluator = build_evaluator(cfg.val_evaluator, short, val.labels)
        validation = dict(
            val_dataloader=_in_order(val, metainfo, evaluator),
            val_cfg=dict(),
            val_evaluator=evaluator if trained is short else
            PerCandidateEvaluator(cfg.val_evaluator, trained, val.labels))
    runner = Runner(
        model=trained,
        work_dir=str(work_dir),
        train_dataloader=train_loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=optim_wrapper,
        param_scheduler=stretched(cfg, epochs, len(train_loader)),
        default_hooks=_hooks(cfg, keep, len(train_loader)),
        custom_hooks=[*(cfg.get('custom_hooks') or []), _ShortHistory()],
        load_from=str(last) if resume else None,
        resume=resume,
        visualizer=cfg.get('visualizer'),
        log_level=cfg.get('log_level', 'INFO'),
        randomness=cfg.get('randomness') or {},
        default_scope=cfg.get('default_scope', 'mmpretrain'),
        # its own, or two probes in one second share what they log
        experiment_name=f'probe_{work_dir.name}_{uuid4().hex[:8]}',
        cfg=Config(dict(model=cfg.model)),
        **validation)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    own = {key: value for key, value in cfg.optim_wrapper.optimizer.items()
           if key in ('lr', 'weight_decay')}
    settings = {name: {**own, **setting}
                for name, setting in (settings or {'': {}}).items()}
    kept, table = next(iter(settings)), []
    if val is not None:
        best = load_checkpoint(
            trained, str(work_dir / KeepBest.BEST), map_location='cpu',
            strict=True, logger='silent')
        if trained is not short:
            kept = best['message_hub']['runtime_info']['best_candidate']
            short.load_state_dict(
                trained.members[list(settings).index(kept)].state_dict())
        table = _table(runner.message_hub, keep, settings, kept)
    return ProbeResult(
        _evaluate(short, cfg, 'val', val, metainfo),
        _evaluate(short, cfg, 'test', test, metainfo), table, settings[kept])


#: Optimisers of torch with one kernel for a step, and what rules it out:
#: of a probe's few small weights, the steps of the kernels are most of it.
_FUSED = ('Adam', 'AdamW', 'SGD')
_IMPLEMENTATIONS = {'fused', 'foreach', 'differentiable', 'capturable'}


def _with_optimisers(short: nn.Module, cfg: Config,
                     settings: dict[str, dict]) -> tuple[nn.Module, Any]:
    """What is trained, and by what: a copy for each of several settings."""
    optim_wrapper = copy.deepcopy(cfg.optim_wrapper)
    optimizer = optim_wrapper.optimizer
    if optimizer.type in _FUSED and not _IMPLEMENTATIONS & set(optimizer):
        optimizer.fused = True
    if len(settings) < 2:
        for setting in settings.values():
            optimizer.update(setting)
        return short, optim_wrapper
    trained = Candidates(short, list(settings))
    print_log(f'{len(settings)} settings are trained ' + (
        'in one product' if trained.fused else
        'one after another on each batch: neck and head are more than a '
        'BNNeck and a linear layer'), 'current')
    return trained, trained.optim_wrappers(optim_wrapper,
                                           list(settings.values()))


def _keeper(cfg: Config, keep_every: float, made_by: dict,
            names: list[str]) -> KeepBest:
    stock = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    save_best = stock.get('save_best')
    return KeepBest(save_best if isinstance(save_best, str) else 'auto',
                    stock.get('rule'), keep_every, made_by,
                    names if len(names) > 1 else None)


def _hooks(cfg: Config, keep: KeepBest, batches: int) -> dict:
    """The config's hooks, with ours for checkpoints, and none for images."""
    hooks = {name: hook for name, hook in
             (cfg.get('default_hooks') or {}).items()
             if name != 'visualization'}
    # an epoch takes less than a second: one line for each
    logger = dict(hooks.get('logger') or dict(type='LoggerHook'))
    logger['interval'] = max(logger.get('interval', 10), batches)
    return dict(hooks, checkpoint=keep, logger=logger)


class _ShortHistory(Hook):
    """Lets MMEngine remember the steps of one epoch only.

    It copies all that it remembers at every step, of which there are tens of
    thousands here.
    """

    def after_train_epoch(self, runner: Runner) -> None:
        for name, history in runner.message_hub.log_scalars.items():
            if name.startswith('train/'):
                history.max_length = len(runner.train_dataloader)


def _check_resumed(last: Path, made_by: dict) -> None:
    kept = CheckpointLoader.load_checkpoint(str(last), map_location='cpu')
    others = differing(kept['meta']['made_by'], made_by)
    if others:
        raise ValueError(f'{str(last)!r} is of another probe: {others}; '
                         'leave resume=True out, or use another work_dir.')


def _in_order(store: FeatureStore, metainfo: dict,
              evaluator: Evaluator) -> DataLoader:
    return feature_loader(
        [store], metainfo, isinstance(evaluator, BatchEvaluator),
        store.fingerprint['batch_size'])


def _evaluate(model: nn.Module, cfg: Config, split: str,
              store: FeatureStore | None, metainfo: dict) -> dict:
    """Metrics of a split, apart from the runner and its hooks."""
    if store is None:
        return {}
    evaluator = build_evaluator(cfg[f'{split}_evaluator'], model,
                                store.labels)
    evaluator.dataset_meta = metainfo
    model.eval()
    with torch.no_grad():
        for batch in _in_order(store, metainfo, evaluator):
            evaluator.process(model.val_step(batch), batch)
    return evaluator.evaluate(len(store))


def _table(hub: MessageHub, keep: KeepBest, settings: dict[str, dict],
           kept: str) -> list[dict[str, Any]]:
    """The best epoch of every setting."""
    rows = []
    for name, setting in settings.items():
        one = len(settings) == 1
        key = keep.metric if one else f'{name}/{keep.metric}'
        values, _ = hub.get_scalar(f'val/{key}').data
        best = (np.nan if np.isnan(values).all() else
                np.nanmax(values) if keep.rules[0] == 'greater' else
                np.nanmin(values))
        epoch = int(np.argmax(values == best)) + 1
        rows.append(dict(**setting, metric=keep.metric, value=float(best),
                         epoch=epoch, kept=name == kept))
    return rows


def save_whole(model: nn.Module, path: str | Path, meta: dict) -> None:
    """Write an ordinary checkpoint of the whole model, or nothing."""
    with written_whole(path) as temporary:
        torch.save(dict(meta=meta, state_dict={
            name: value.cpu() for name, value in model.state_dict().items()
        }), temporary)
