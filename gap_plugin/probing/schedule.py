"""The schedule of a config, for another number of epochs."""

import copy

from mmengine.config import Config

#: Fields of schedulers that count epochs or iterations.
_COUNTS = ('begin', 'end', 'T_max', 'milestones', 'total_steps', 'step_size',
           'periods')
_DIVISORS = ('T_max', 'total_steps', 'step_size')


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
                if key in _DIVISORS:
                    one[key] = max(one[key], 1)
    return [one for one in schedule
            if one.get('end') is None or one['end'] > one.get('begin', 0)]
