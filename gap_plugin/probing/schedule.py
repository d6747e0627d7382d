"""The schedule of a config, stretched or shrunk to a number of epochs."""

import warnings

import numpy as np
import torch
from mmengine.registry import PARAM_SCHEDULERS

#: What schedulers of MMEngine change in a group of parameters.
_KEYS = ('lr', 'momentum', 'betas', 'weight_decay', 'eps')


class Schedule:
    """Sets what the config's schedulers set at the same share of their run.

    They are run ahead, over the config's own number of steps, and what they
    set is kept: so each is stretched rightly, whatever it counts.

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
        self._places = np.arange(steps) * own_steps // steps
        self._values: dict[str, np.ndarray] = {}
        if schedulers:
            self._values = _ahead(
                schedulers, optimizer, own_steps, epoch_length,
                epoch_length if by_epoch else own_steps)

    def apply(self, step: int) -> None:
        """Set what holds for a step, counted from 0."""
        place, before = self._places[step], self._places[step - 1]
        for key, values in self._values.items():
            if step and (values[place] == values[before]).all():
                continue
            for group, value in zip(self._groups, values[place].tolist(),
                                    strict=True):
                group[key] = value


def _ahead(schedulers: list[dict], optimizer: torch.optim.Optimizer,
           steps: int, epoch_length: int,
           period: int) -> dict[str, np.ndarray]:
    """What schedulers set in each group, step by step: key -> (steps, G)."""
    # they change the method step of what they are given
    stand_in = torch.optim.Optimizer([
        dict(group, params=[torch.zeros(())])
        for group in optimizer.param_groups], optimizer.defaults)
    groups = stand_in.param_groups
    kept = {key: [] for key in _KEYS if key in groups[0]}
    with warnings.catch_warnings():  # that no step was taken
        warnings.simplefilter('ignore')
        # as MMEngine's runner builds them
        built = [PARAM_SCHEDULERS.build(
            dict(dict(end=-(-steps // period) if one.get('by_epoch', True)
                      else steps), **one),
            default_args=dict(optimizer=stand_in, epoch_length=epoch_length))
            for one in schedulers]
        for step in range(1, steps + 1):
            for key, values in kept.items():
                values.append([group[key] for group in groups])
            for scheduler in built:
                if not scheduler.by_epoch or step % period == 0:
                    scheduler.step()
    found = {key: np.array(values) for key, values in kept.items()}
    return {key: values for key, values in found.items() if (
        values != [group[key] for group in optimizer.param_groups]).any()}
