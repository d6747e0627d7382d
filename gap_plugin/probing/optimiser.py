"""The optimiser of a config, for several settings at once."""

import copy
import logging

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from .candidates import Candidates

#: Optimisers of torch with one kernel for a step, and what rules it out:
#: of a probe's few small weights, the steps of the kernels are most of it.
_FUSED = ('Adam', 'AdamW', 'SGD')
_IMPLEMENTATIONS = {'fused', 'foreach', 'differentiable', 'capturable'}

#: Schedulers that wait for a metric.
_PLATEAU = 'ReduceOnPlateau'


def optimiser(trained: Candidates, cfg: Config,
              settings: list[dict]) -> OptimWrapper:
    """One optimiser of the config, a group or more for each setting."""
    made = []
    for model, setting in zip(trained.models, settings, strict=True):
        own = copy.deepcopy(cfg.optim_wrapper)
        if own.get('type', 'OptimWrapper') != 'OptimWrapper':
            own = {key: value for key, value in own.items() if key in (
                'optimizer', 'paramwise_cfg', 'constructor', 'clip_grad',
                'accumulative_counts')}
        optimizer = own['optimizer']
        if optimizer['type'] in _FUSED and not (
                _IMPLEMENTATIONS & set(optimizer)):
            optimizer['fused'] = True
        optimizer.update({key: value for key, value in setting.items()
                          if key != 'norm'})
        made.append(build_optim_wrapper(model, ConfigDict(own)))
    first = made[0].optimizer
    if type(first).__module__.startswith('torch.optim'):
        for other in made[1:]:
            for group in other.optimizer.param_groups:
                first.add_param_group(group)
    elif len(made) > 1:
        made[0].optimizer = _Each([other.optimizer for other in made])
    scaled = cfg.get('auto_scale_lr') or {}
    if scaled.get('enable'):  # as the runner
        for group in made[0].optimizer.param_groups:
            group['lr'] *= (cfg.train_dataloader.batch_size
                            / scaled['base_batch_size'])
    return made[0]


class _Each(torch.optim.Optimizer):
    """Optimisers as one, none of which sees the weights of another.

    Some, such as ``Lamb``, look at all gradients together.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for one in optimizers
                          for group in one.param_groups],
                         optimizers[0].defaults)
        self._optimizers = optimizers

    def step(self) -> None:
        """A step of each."""
        for one in self._optimizers:
            one.step()


def update(wrapper: OptimWrapper, trained: Candidates,
           loss: torch.Tensor) -> None:
    """A step; each setting is clipped on its own."""
    wrapper.backward(wrapper.scale_loss(loss))
    if not wrapper.should_update():
        return
    if wrapper.clip_grad_kwargs:
        trained.clip(wrapper.clip_func, wrapper.clip_grad_kwargs)
    wrapper.optimizer.step()
    trained.zero_grad()


def tell_left_out(cfg: Config, model: nn.Module) -> None:
    """Name what of a config a probe does not do."""
    found = [str(hook.get('type')) for hook in cfg.get('custom_hooks') or []]
    if getattr(model.data_preprocessor, 'batch_augments', None):
        found.append('the augments that mix images')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind != 'OptimWrapper':
        found.append(f'the mixed precision or more of {kind}')
    found += [one['type'] for one in _schedulers(cfg) if _PLATEAU in str(
        one['type'])]
    if found:
        print_log(f'left out of the probe: {", ".join(found)}.', 'current',
                  logging.WARNING)


def schedulers(cfg: Config) -> list[dict]:
    """Those of a config that go by steps and epochs."""
    return [one for one in _schedulers(cfg)
            if _PLATEAU not in str(one['type'])]


def _schedulers(cfg: Config) -> list[dict]:
    found = cfg.get('param_scheduler') or []
    return found if isinstance(found, list) else [found]
