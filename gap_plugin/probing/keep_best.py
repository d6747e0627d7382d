"""Checkpoints of a probe that outlive a kill."""

import math
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..engine.device import random_states, set_random_states
from ..files import written_whole


class KeepBest(CheckpointHook):
    """Keeps the last epoch, to go on from, and the best one, through a kill.

    MMEngine's own hook writes over its files in place, takes the former best
    one away before the new one is there, and saves an epoch ahead of its
    validation: a run that is killed may lose its best epoch. Here both files
    are renamed into place, after the validation. A run that goes on is the
    same run, dropout included, so that a best file newer than the last epoch
    does no harm.

    Args:
        save_best: Metric to choose by; ``'auto'`` for the first one.
        rule: ``'greater'``, ``'less'``, or None to infer it.
        seconds: How often the last epoch is kept, at most.
        made_by: What the run depends on, kept along with it.
        candidates: Names that metrics begin with, where several heads are
            trained at once; the epoch is as good as the best of them.
    """

    LAST, BEST = 'last.pth', 'best.pth'

    def __init__(self, save_best: str = 'auto', rule: str | None = None,
                 seconds: float = 5.,
                 made_by: dict[str, Any] | None = None,
                 candidates: list[str] | None = None) -> None:
        super().__init__(save_best=save_best, rule=rule)
        self.made_by = made_by
        self.prefixes = {
            name: f'{name}/' for name in candidates} if candidates else {
                '': ''}
        self.seconds = seconds
        self._kept = 0.
        self._random: dict[str, Any] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Random numbers go on where the kept epoch ended."""
        self._random = checkpoint['meta'].get('random') or {}

    def before_train_epoch(self, runner: Runner) -> None:
        """See above: what builds the run has drawn some since."""
        if self._random:
            set_random_states(self._random)
            self._random = {}

    def before_train(self, runner: Runner) -> None:
        """Of a run that goes on, the metric is known."""
        super().before_train(runner)
        known = runner.message_hub.runtime_info
        if 'best_metric' in known:
            self._init_rule(self.rules, [known['best_metric']])

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
        first = next(iter(self.prefixes.values()))
        if self.key_indicators == ['auto']:
            self._init_rule(
                self.rules, [next(iter(metrics)).removeprefix(first)])
        if first + self.metric not in metrics:
            raise ValueError(
                f'save_best of the checkpoint hook is {self.metric!r}, but '
                'the evaluator gives '
                f'{", ".join(k.removeprefix(first) for k in metrics)}.')
        known = runner.message_hub.runtime_info
        runner.message_hub.update_info('best_metric', self.metric)
        for name, prefix in self.prefixes.items():
            score = float(metrics[prefix + self.metric])
            if ('best_score' not in known
                    or self._better(score, known['best_score'])):
                runner.message_hub.update_info('best_score', score)
                runner.message_hub.update_info('best_candidate', name)
                runner.message_hub.update_info('best_epoch', runner.epoch)
        if known['best_epoch'] == runner.epoch:
            self._write(runner, self.BEST, runner.epoch)
        self._keep(runner, runner.epoch)

    @property
    def metric(self) -> str:
        """What is chosen by."""
        (key, ) = self.key_indicators
        return key

    def _better(self, score: float, best: float) -> bool:
        """Whether a score is a new best one; NaN is the worst."""
        if math.isnan(best):
            return not math.isnan(score)
        return self.is_better_than[self.metric](score, best)

    def _keep(self, runner: Runner, epoch: int) -> None:
        now = time.monotonic()
        if (now - self._kept >= self.seconds
                or epoch == runner.max_epochs):
            self._write(runner, self.LAST, epoch)
            self._kept = now

    def _write(self, runner: Runner, name: str, epoch: int) -> None:
        with written_whole(Path(self.out_dir) / name) as temporary:
            runner.save_checkpoint(
                self.out_dir, temporary.name, by_epoch=False,
                meta=dict(
                    epoch=epoch, iter=epoch * len(runner.train_dataloader),
                    made_by=self.made_by, random=random_states()),
                save_optimizer=name == self.LAST,
                save_param_scheduler=name == self.LAST)
