"""The schedule of a config, stretched or shrunk to a number of epochs."""

import torch
from mmengine.registry import PARAM_SCHEDULERS

#: What schedulers of MMEngine change in a group of parameters.
_KEYS = ('lr', 'momentum', 'betas', 'weight_decay', 'eps')


class Schedule:
    """Sets what the config's schedulers set at the same share of their run.

    They run beside, through the config's own number of steps: so each is
    stretched rightly, whatever it counts.

    Args:
        schedulers: Those of the config.
        optimizer: Whose groups are set.
        own_steps: Steps of the config's own run.
        epoch_length: Steps of an epoch.
        steps: Steps of the run that it is for.
        by_epoch: Whether the config's own run counts epochs; one that counts
            iterations is a single epoch to MMEngine.
    """

    def __init__(self, schedulers: list[dict],
                 optimizer: torch.optim.Optimizer, own_steps: int,
                 epoch_length: int, steps: int,
                 by_epoch: bool = True) -> None:
        self._groups = optimizer.param_groups
        self._own_steps, self._steps, self._done = own_steps, steps, 0
        self._period = epoch_length if by_epoch else own_steps
        # they change the method step of what they are given
        stand_in = torch.optim.Optimizer([
            dict(group, params=[torch.zeros(())])
            for group in self._groups], optimizer.defaults)
        self._own_groups = stand_in.param_groups
        epochs = -(-own_steps // self._period)
        # as MMEngine's runner builds them
        self._schedulers = [PARAM_SCHEDULERS.build(
            dict(dict(end=epochs if one.get('by_epoch', True) else own_steps),
                 **one),
            default_args=dict(optimizer=stand_in, epoch_length=epoch_length))
            for one in schedulers]
        stand_in._global_step = 0  # or they warn that no step was taken

    def apply(self, step: int) -> None:
        """Set what holds for a step, counted from 0; one after another."""
        place = step * self._own_steps // self._steps
        if not self._schedulers or step and place == self._done:
            return
        for done in range(self._done + 1, place + 1):
            for scheduler in self._schedulers:
                if not scheduler.by_epoch or done % self._period == 0:
                    scheduler.step()
        self._done = place
        for group, own in zip(self._groups, self._own_groups, strict=True):
            group.update({key: own[key] for key in _KEYS if key in own})
