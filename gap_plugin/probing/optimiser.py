"""The optimiser of a config, for several settings at once."""

import copy
import logging
from collections.abc import Collection

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from .candidates import Candidates

#: Optimisers of torch with one kernel for a step, and what rules it out:
#: of a probe's few small weights, the steps of the kernels are most of it.
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_IMPLEMENTATIONS = {'fused', 'foreach', 'differentiable', 'capturable'}

#: What schedulers change in a group, beside rate and decay.
_SCHEDULED = ('momentum', 'betas', 'eps')

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
        if optimizer['type'] in [one.__name__ for one in _FUSED] and not (
                _IMPLEMENTATIONS & set(optimizer)):
            optimizer['fused'] = True
        changed = {key: value for key, value in setting.items()
                   if key != 'norm'}
        optimizer.update(changed)
        frozen = _frozen(own)
        frozen.update({key: changed[key] for key in frozen.keys() & changed})
        made.append(build_optim_wrapper(model, ConfigDict(own)))
    each = [one.optimizer for one in made]
    if len(each) > 1:
        at_once = trained.stacks and type(each[0]) in _FUSED and (
            not each[0].defaults['maximize'])
        made[0].optimizer = (_AtOnce(each, trained.stacks) if at_once
                             else _Each(each))
    scaled = cfg.get('auto_scale_lr') or {}
    if scaled.get('enable'):  # as the runner
        for group in made[0].optimizer.param_groups:
            group['lr'] *= (cfg.train_dataloader.batch_size
                            / scaled['base_batch_size'])
    return made[0]


def own_setting(cfg: Config) -> dict[str, float]:
    """Rate and decay that the optimiser of a config has in a probe."""
    found = dict(cfg.optim_wrapper.optimizer, **_frozen(cfg.optim_wrapper))
    return {key: found[key] for key in ('lr', 'weight_decay')
            if key in found}


def _frozen(optim_wrapper: dict) -> dict:
    """What FinetuneOptimWrapperConstructor sets on fixed features."""
    if optim_wrapper.get('constructor') != 'FinetuneOptimWrapperConstructor':
        return {}
    return (optim_wrapper.get('paramwise_cfg') or {}).get('frozen') or {}


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


class _AtOnce(_Each):
    """Adam, AdamW or SGD of all settings, by one step of torch's.

    These go as far as their learning rate says, in a direction that it has
    no part in. Torch goes there from 0, at a rate of 1, and each setting
    takes its share of that.

    Args:
        optimizers: One for each setting, of the same kind.
        stacks: Parameters of all settings, and those of each.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer],
                 stacks: list[tuple[torch.Tensor, list]]) -> None:
        super().__init__(optimizers)
        group_of = {part: group for group in self.param_groups
                    for part in group['params']}
        self._stacks = [(whole, torch.zeros_like(whole),
                         [group_of[part] for part in parts])
                        for whole, parts in stacks]
        for whole, way, _ in self._stacks:
            way.grad = whole.grad
        self._torch = type(optimizers[0])([
            dict(groups[0], params=[way], lr=1., weight_decay=0.)
            for _, way, groups in self._stacks])

    @torch.no_grad()
    def step(self) -> None:
        """A step of each."""
        rates = []
        for (whole, _, groups), own in zip(
                self._stacks, self._torch.param_groups, strict=True):
            rate, decay = (
                torch.tensor([group[key] for group in groups],
                             device=whole.device).view(
                    -1, *[1] * (whole.ndim - 1))
                for key in ('lr', 'weight_decay'))
            rates.append(rate)
            if own.get('decoupled_weight_decay', isinstance(
                    self._torch, torch.optim.AdamW)):
                whole.mul_(1 - rate * decay)
            else:
                whole.grad.add_(decay * whole)
            own.update({key: groups[0][key] for key in _SCHEDULED
                        if key in own})
        self._torch.step()
        for (whole, way, _), rate in zip(self._stacks, rates, strict=True):
            whole.addcmul_(way, rate)
            way.zero_()


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


def check_settings(cfg: Config, settings: Collection[dict]) -> None:
    """Refuse settings that a scheduler of the config would write over.

    Raises:
        ValueError: Which one.
    """
    for one in _schedulers(cfg):
        key = one.get('param_name', 'lr')
        if 'OneCycle' in str(one['type']) and any(
                key in setting for setting in settings):
            raise ValueError(
                f'the one-cycle schedule of the config sets {key} by its own '
                f'eta_max, so that no other {key} would count: give none, or '
                'take another param_scheduler.')


def schedulers(cfg: Config) -> list[dict]:
    """Those of a config that go by steps and epochs."""
    return [one for one in _schedulers(cfg)
            if _PLATEAU not in str(one['type'])]


def _schedulers(cfg: Config) -> list[dict]:
    found = cfg.get('param_scheduler') or []
    return found if isinstance(found, list) else [found]
