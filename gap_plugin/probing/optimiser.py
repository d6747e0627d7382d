"""The optimiser of a config, for several settings at once."""

import copy
import logging

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from .parts import Candidates

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
        optimizer.update(setting)
        made.append(build_optim_wrapper(model, ConfigDict(own)))
    for other in made[1:]:
        for group in other.optimizer.param_groups:
            made[0].optimizer.add_param_group(group)
    return made[0]


def update(wrapper: OptimWrapper, trained: Candidates,
           loss: torch.Tensor) -> None:
    """A step; each setting is clipped on its own."""
    wrapper.backward(wrapper.scale_loss(loss))
    if not wrapper.should_update():
        return
    if wrapper.clip_grad_kwargs:
        for model in trained.models:
            wrapper.clip_func([p for p in model.parameters()
                               if p.grad is not None],
                              **wrapper.clip_grad_kwargs)
    wrapper.optimizer.step()
    wrapper.optimizer.zero_grad()


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
