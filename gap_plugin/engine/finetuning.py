"""Rates of fine-tuning: new layers ahead of pretrained ones."""

import math
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..timm_network import is_transformer

#: Of transformers, as in the fine-tuning of BEiT, MAE and DINOv2.
LAYER_DECAY = 0.75

_KEYS = ('head_lr_mult', 'layer_decay_rate', 'frozen', 'custom_keys',
         'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
         'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult',
         'bypass_duplicate')

_FROZEN = ('lr', 'weight_decay', 'width')

#: What FSDP puts into names.
_SHARD = '_fsdp_wrapped_module'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FinetuneOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Neck and head ahead of the backbone, whose blocks may be graded.

    Where the backbone is trained, what lies outside of it has
    ``head_lr_mult`` times the rate of ``optimizer``: new layers that are as
    slow as pretrained ones spoil those. Where it is not (a frozen one, a
    probe), neck and head have rate and decay of ``frozen``: Adam moves each
    weight alike, so that a logit of few features moves too slowly at a rate
    that is right for many (as in https://arxiv.org/abs/2203.03466), and the
    more features there are, the sooner they are learned by heart.

    A parameter of the backbone has the rate times ``layer_decay_rate ** d``,
    ``d`` being 0 in its last part, 1 in the one ahead of that, and so on, by
    the ``get_layer_depth`` of the backbone. As with timm's
    ``param_groups_layer_decay``, the norm behind the blocks of a ViT is the
    last part.

    Args:
        optim_wrapper_cfg: As of MMEngine's constructor.
        paramwise_cfg: The settings of MMEngine's constructor, and:

            - ``head_lr_mult``: over 0, 1 by default.
            - ``layer_decay_rate``: over 0, 1 at most. ``'auto'``: 0.75 for
              transformers that tell the depth of their layers, 1 (the
              default) for others.
            - ``frozen``: where the backbone is not trained, ``lr`` and
              ``weight_decay`` in place of those of ``optimizer``, and the
              ``width`` that they are right for: a matrix that takes C
              features has ``width / C`` times the rate, and it and a norm's
              scale of C have ``(C / width) ** 2`` times the decay, at most
              all of it. That decay reaches all but biases,
              ``flat_decay_mult`` or not: a scale that grows undoes the decay
              of the matrix behind it. What ``frozen`` leaves out, and what
              ``custom_keys`` name, stays as it is.
            - ``flat_decay_mult`` reaches what timm lets no decay reach, too,
              such as position embeddings (``no_weight_decay``); what
              ``custom_keys`` name goes by these.

    Raises:
        ValueError: If a setting has another name or is out of its range.
    """

    def __init__(self, optim_wrapper_cfg: dict,
                 paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        # modules that several blocks of a network share (CoaT) are one
        self.paramwise_cfg.setdefault('bypass_duplicate', True)
        name = type(self).__name__
        unknown = sorted(map(str, set(self.paramwise_cfg) - set(_KEYS)))
        if unknown:
            raise ValueError(f'paramwise_cfg of {name} has no '
                             f'{", ".join(unknown)}; it takes '
                             f'{", ".join(_KEYS)}.')
        self._ahead = self.paramwise_cfg.get('head_lr_mult', 1.)
        self._decay = self.paramwise_cfg.get('layer_decay_rate', 1.)
        if not _positive(self._ahead):
            raise ValueError(f'head_lr_mult of {name} must be a number over '
                             f'0, got {self._ahead!r}.')
        self._frozen = self.paramwise_cfg.get('frozen') or {}
        if not isinstance(self._frozen, dict) or set(self._frozen) - set(
                _FROZEN) or not all(
                    _positive(value) or (key, value) == ('weight_decay', 0)
                    for key, value in self._frozen.items()):
            raise ValueError(f'frozen of {name} must be a dict of '
                             f'{", ".join(_FROZEN)}, numbers over 0, got '
                             f'{self._frozen!r}.')
        if self._decay != 'auto' and not (
                _positive(self._decay) and self._decay <= 1):
            raise ValueError(f"layer_decay_rate of {name} must be 'auto', or "
                             'a number over 0 and 1 at most, got '
                             f'{self._decay!r}.')
        if self.base_lr is None:
            raise ValueError(f'{name} multiplies the lr of the optimizer, '
                             'which has none: give optimizer=dict(lr=...).')

    def add_params(self, params: list[dict], module: nn.Module,
                   prefix: str = '', **kwargs: Any) -> None:
        """As MMEngine's, then the rates of the whole model."""
        backbone = None if prefix else getattr(module, 'backbone', None)
        if backbone is None:
            super().add_params(params, module, prefix, **kwargs)
            return
        if any(_SHARD in name for name, _ in module.named_parameters()):
            raise ValueError(
                f'{type(self).__name__} finds neither depth nor width of '
                'parameters that FSDP has divided: leave constructor and '
                'paramwise_cfg out of optim_wrapper.')
        if any(value.requires_grad for value in backbone.parameters()):
            super().add_params(params, module, prefix, **kwargs)
            self._grade(params, backbone)
            return
        own = self.base_lr, self.base_wd, self.paramwise_cfg
        self.base_lr = self._frozen.get('lr', self.base_lr)
        if 'weight_decay' in self._frozen:
            self.base_wd = self._frozen['weight_decay']
            self.paramwise_cfg = {'bias_decay_mult': 0., **self.paramwise_cfg,
                                  'flat_decay_mult': None}
        try:
            super().add_params(params, module, prefix, **kwargs)
            self._follow_width(params, module)
        finally:  # it may be asked for another model
            self.base_lr, self.base_wd, self.paramwise_cfg = own

    def _follow_width(self, params: list[dict], module: nn.Module) -> None:
        """Rates and decays of what is trained on fixed features."""
        names = {id(value): name for name, value in module.named_parameters()}
        custom = ('bias', *self.paramwise_cfg.get('custom_keys', ()))
        for group in params:
            group.setdefault('lr', self.base_lr)
            if self.base_wd is not None:
                group.setdefault('weight_decay', self.base_wd)
            (value, ) = group['params']
            matrix = value.ndim > 1
            features = value[0].numel() if matrix else value.numel()
            if ('width' not in self._frozen or features == 1
                    or any(key in names[id(value)] for key in custom)):
                continue
            share = features / self._frozen['width']
            if matrix:
                group['lr'] /= share
            if self.base_wd is not None:
                group['weight_decay'] *= min(share, 1) ** 2
        if self._frozen:
            print_log(f'frozen backbone: lr {self.base_lr:.3g} and weight '
                      f'decay {self.base_wd or 0:.3g}, by '
                      'paramwise_cfg.frozen', 'current')

    def _grade(self, params: list[dict], backbone: nn.Module) -> None:
        """Rates and decays where the backbone is trained."""
        names = {id(value): name for name, value in
                 backbone.named_parameters()}
        inside, outside = [], []
        for group in params:
            (inside if id(group['params'][0]) in names else
             outside).append(group)
        for group in outside:
            group['lr'] = group.get('lr', self.base_lr) * self._ahead
        decay = self._decay
        if decay == 'auto':
            decay = LAYER_DECAY if is_transformer(backbone) and hasattr(
                backbone, 'get_layer_depth') else 1.
        flat, spared = self.paramwise_cfg.get('flat_decay_mult'), set()
        if flat is not None and self.base_wd is not None:
            spared = {name for name in _without_decay(backbone) if not any(
                key in f'backbone.{name}' for key in
                self.paramwise_cfg.get('custom_keys', ()))}
        for group in inside:
            name = names[id(group['params'][0])]
            group.setdefault('lr', self.base_lr)
            if decay != 1:
                try:
                    depth, count = backbone.get_layer_depth(name)
                except (AttributeError, NotImplementedError):
                    raise ValueError(
                        f'{type(backbone).__name__} tells no depth of its '
                        "layers: use layer_decay_rate='auto', or leave it "
                        'out.') from None
                # the host counts a last norm to the head
                group['lr'] *= decay ** max(count - 2 - depth, 0)
            if name in spared:
                group['weight_decay'] = self.base_wd * flat
        rates = [[group['lr'] for group in groups] or [0.]
                 for groups in (inside, outside)]
        print_log(f'rates: {min(rates[0]):.3g} to {max(rates[0]):.3g} in the '
                  f'backbone, {max(rates[1]):.3g} in neck and head',
                  'current')


def _positive(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and 0 < value < math.inf)


def _without_decay(backbone: nn.Module) -> set[str]:
    """Names of parameters that timm lets no decay reach, not flat in MMEngine.

    Those that the network names, and single numbers.
    """
    found = {name for name, value in backbone.named_parameters()
             if not value.ndim}
    for prefix, module in backbone.named_modules():
        if callable(getattr(module, 'no_weight_decay', None)):
            found |= {f'{prefix}.{name}'.lstrip('.')
                      for name in module.no_weight_decay()}
    return found
