"""Neck and head of a config, trained on stored features."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from ..features.images import check_split, refuse_unlabelled
from ..features.store import FeatureStore
from ..progress import bar
from .candidates import Candidates, candidates
from .choice import Score, folds
from .curves import curves
from .metrics import evaluate, numbers
from .optimiser import (
    check_settings,
    optimiser,
    own_setting,
    schedulers,
    tell_left_out,
    update,
)
from .parts import of_setting, probe_model
from .rows import Batches, Rows
from .schedule import Schedule

#: Ways to choose one of several settings.
SELECT = ('cv', 'val')


@dataclass
class ProbeResult:
    """What a probe has found.

    Attributes:
        metrics: On the validation split; empty without validation.
        test_metrics: The same weights on the test split; empty without one.
        table: A row per setting of the optimiser: its values, ``metric``
            (which is chosen by), ``value``, ``std`` over the folds of a
            cross-validation, ``split`` and ``epoch`` of the value, ``kept``.
        setting: That of the kept weights.
        epoch: Theirs.
    """

    metrics: dict[str, float]
    test_metrics: dict[str, float]
    table: list[dict[str, Any]] = field(default_factory=list)
    setting: dict[str, float] = field(default_factory=dict)
    epoch: int = 0


def probe(model: nn.Module, cfg: Config, train: FeatureStore | list,
          val: FeatureStore | None, *, epochs: int,
          metainfo: dict | None = None,
          work_dir: str | Path | None = None,
          settings: Mapping[str, dict] | None = None,
          select: str = 'cv', fold_count: int = 5,
          test: FeatureStore | None = None) -> ProbeResult:
    """Train neck and head on stored features, with the config's schedule.

    One setting is trained on all training rows, and its last epoch is kept.
    Of several, one is chosen by cross-validation on the training rows, and
    then trained likewise, so that the validation split has chosen nothing;
    or, by ``select='val'``, the setting and the epoch are kept that are best
    on the validation split.

    Args:
        model: The classifier, with its weights; its neck and head end up
            with those that are kept.
        cfg: The config. Its sampler, optimiser, schedule (stretched to
            ``epochs``), evaluators and visualizer are used.
        train: Features to train on. Of several stores of the same images,
            such as augmented views, each epoch takes the next.
        val: Features to validate on after every epoch.
        epochs: How many.
        metainfo: Of the dataset, for the evaluators.
        work_dir: For the curves; None for none.
        settings: Name -> what of the optimiser is another one, see
            :func:`~gap_plugin.probing.grid`.
        select: ``'cv'`` or ``'val'``.
        fold_count: Folds of the cross-validation.
        test: Features to evaluate the kept weights on, once.

    Raises:
        ValueError: If the parts do not fit together, or the training has
            diverged.
    """
    views = train if isinstance(train, list) else [train]
    settings = dict(settings or {'': {}})
    if epochs < 1:
        raise ValueError(f'epochs={epochs} must be 1 at least.')
    if select not in SELECT:
        raise ValueError(f'select must be one of {SELECT}, got {select!r}.')
    if select == 'val' and val is None:
        raise ValueError("select='val' and no validation: choose by "
                         "cross-validation, select='cv'.")
    if len({view.images for view in views}) > 1:
        raise ValueError('the views are not of the same images: extract them '
                         'again with force=True.')
    for key, used in (('optim_wrapper', True), ('train_cfg', True),
                      ('val_evaluator', val or len(settings) > 1),
                      ('test_evaluator', test)):
        if used and not cfg.get(key):
            raise ValueError(f'the config has no {key}, which this probe '
                             'needs: add it.')
    check_settings(cfg, settings.values())
    for split, store in (('train', views[0]), ('val', val), ('test', test)):
        if store is not None:
            refuse_unlabelled(store.labels, split)
            check_split(store.labels, model, split)
    tell_left_out(cfg, model)
    short = probe_model(model, views[0].description['in_tuple'])
    device = next(model.parameters()).device
    rows, val_rows, test_rows = (
        None if stores[0] is None else Rows(stores, device, metainfo)
        for stores in (views, [val], [test]))
    run = _Run(cfg, epochs)
    chosen, table = next(iter(settings)), []
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        if select == 'cv' and len(settings) > 1:
            chosen, table = run.cross_validated(
                short, settings, rows, np.asarray(views[0].sample_ids),
                fold_count)
        with curves(cfg, work_dir) as run.draw:
            if select == 'val':
                chosen, table = run.best_on_val(short, settings, rows,
                                                val_rows)
            else:
                part = of_setting(short, settings[chosen])
                run.train(Candidates(part, 1), {chosen: settings[chosen]},
                          rows, val_rows)
    own = own_setting(cfg)
    kept = Candidates(short, 1)
    if kept.diverged()[0]:
        raise ValueError('the probe has diverged, its weights are not finite:'
                         ' try a smaller lr.')
    found = [
        {} if some is None else run.evaluate(kept, some, split)[0]
        for split, some in (('val', val_rows), ('test', test_rows))]
    short.zero_grad()
    if val is not None and not table:
        metric = run.score.metric
        table = [dict(name=chosen, metric=metric, split='val', epoch=epochs,
                      value=float(found[0][metric]), kept=True)]
    for row in table:
        row.update({**own, **settings[row.pop('name')]})
    (epoch, ) = [row['epoch'] for row in table if row['kept']] or [epochs]
    return ProbeResult(*found, table, {**own, **settings[chosen]}, epoch)


class _Run:
    """Trainings by one config."""

    def __init__(self, cfg: Config, epochs: int) -> None:
        self.cfg, self.epochs, self.score = cfg, epochs, Score(cfg)
        self.seed = (cfg.get('randomness') or {}).get('seed') or 0
        self.draw: Callable | None = None  # takes scalars and their step

    def evaluate(self, trained: Candidates, rows: Rows,
                 split: str = 'val') -> list[dict[str, float]]:
        """Metrics of every setting, by the evaluator of a split."""
        loader = (self.cfg.get(f'{split}_dataloader')
                  or self.cfg.train_dataloader)
        return evaluate(self.cfg[f'{split}_evaluator'], trained, rows,
                        loader.batch_size)

    def train(self, trained: Candidates, settings: Mapping[str, dict],
              rows: Rows, val_rows: Rows | None = None, *,
              size: int | None = None, told: str = 'probe',
              after: Callable[[int, list[dict]], None] | None = None
              ) -> list[dict[str, float]]:
        """Train from the weights that are there.

        Args:
            trained: What is trained.
            settings: Of each of them.
            rows: What it is trained on.
            val_rows: What it is evaluated on after every epoch.
            size: Rows of a batch; None for that of the config.
            told: Stands ahead of the progress bar.
            after: Called with the number of each epoch and its metrics.

        Returns:
            Metrics of the last epoch.
        """
        torch.manual_seed(self.seed)
        loader = self.cfg.train_dataloader
        batches = Batches(dict(loader, batch_size=size or loader.batch_size),
                          rows, self.seed)
        steps = self.epochs * len(batches)
        wrapper = optimiser(trained, self.cfg, list(settings.values()))
        wrapper.initialize_count_status(nn.Identity(), 0, steps)
        loop = self.cfg.train_cfg
        schedule = Schedule(
            schedulers(self.cfg), wrapper.optimizer,
            loop.get('max_iters') or loop.max_epochs * len(batches),
            len(batches), steps, by_epoch=not loop.get('max_iters'))
        step, found = 0, []
        with bar(self.epochs, told, 'epochs') as advance:
            for epoch in range(self.epochs):
                trained.train()
                points: dict[str, list[torch.Tensor]] = defaultdict(list)
                for chosen in batches.of(epoch):
                    schedule.apply(step)
                    losses = trained.loss(*rows.take(chosen, epoch))
                    update(wrapper, trained, losses['loss'])
                    for key, value in losses.items():
                        points[key].append(value.detach())
                    step += 1
                if val_rows is not None:
                    found = self.evaluate(trained, val_rows)
                    self.score(found[0])
                self._draw(epoch + 1, settings, found, wrapper, {
                    key: float(torch.stack(values).mean())
                    for key, values in points.items()})
                if after is not None:
                    after(epoch + 1, found)
                advance(1)
        return found

    def _draw(self, epoch: int, settings: Mapping[str, dict],
              found: list[dict], wrapper: OptimWrapper,
              losses: dict[str, float]) -> None:
        """Hand a point of each curve to the visualizer."""
        if self.draw is None:
            return
        scalars = dict(losses, loss=losses['loss'] / len(settings))
        if len(settings) == 1:
            scalars['lr'] = wrapper.optimizer.param_groups[0]['lr']
        for name, metrics in zip(settings, found, strict=False):
            scalars.update({
                f'{name}/{key}' if len(settings) > 1 else key: value
                for key, value in numbers(metrics).items()})
        self.draw(scalars, step=epoch)

    def best_on_val(self, short: nn.Module, settings: Mapping[str, dict],
                    rows: Rows, val_rows: Rows) -> tuple[str, list[dict]]:
        """The setting that is best on a split, with its best epoch kept."""
        best: dict[str, tuple[float, dict]] = {}
        kept: list[Any] = []

        def after(epoch: int, found: list[dict]) -> None:
            for name, model, metrics in zip(part, trained.models, found,
                                            strict=True):
                score = self.score(metrics)
                if name in best and score <= best[name][0]:
                    continue
                metric = self.score.metric
                best[name] = score, dict(
                    name=name, metric=metric, value=float(metrics[metric]),
                    split='val', epoch=epoch)
                if not kept or score > kept[0]:
                    kept[:] = score, name, {key: value.clone() for key, value
                                            in model.state_dict().items()}

        for trained, part in candidates(short, settings):
            self.train(trained, part, rows, val_rows, after=after)
        _, chosen, state = kept
        of_setting(short, settings[chosen]).load_state_dict(state)
        return chosen, [dict(best[name][1], kept=name == chosen)
                        for name in settings]

    def cross_validated(self, short: nn.Module,
                        settings: Mapping[str, dict], rows: Rows,
                        names: np.ndarray, count: int
                        ) -> tuple[str, list[dict]]:
        """The setting whose last epoch is best on rows it has not seen."""
        fold = folds(rows.labels.numpy(), names, count, self.seed)
        found = []
        for k in range(count):
            seen = np.flatnonzero(fold != k)
            size = min(self.cfg.train_dataloader.batch_size, len(seen))
            if len(seen) % size == 1:
                seen = seen[1:]  # no batch norm is trained on a lone row
            of_each = {}
            for trained, part in candidates(short, settings):
                self.train(trained, part, rows.subset(seen), size=size,
                           told=f'fold {k + 1}/{count}')
                of_each.update(zip(part, self.evaluate(
                    trained, rows.subset(np.flatnonzero(fold == k))),
                    strict=True))
            found.append([of_each[name] for name in settings])
        scores = np.array([[self.score(m) for m in one] for one in found])
        kept = list(settings)[int(scores.mean(0).argmax())]
        table, metric = [], self.score.metric
        for name, one in zip(settings, zip(*found, strict=True), strict=True):
            values = [float(metrics[metric]) for metrics in one]
            table.append(dict(
                name=name, metric=metric, value=float(np.mean(values)),
                std=float(np.std(values)), split=f'train, {count} folds',
                epoch=self.epochs, kept=name == kept))
        return kept, table
