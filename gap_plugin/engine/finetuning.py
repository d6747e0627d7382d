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

_KEYS = ('head_lr_mult', 'layer_decay_rate', 'lr_width', 'custom_keys',
         'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
         'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult',
         'bypass_duplicate')


#: What FSDP puts into names.
_SHARD = '_fsdp_wrapped_module'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FinetuneOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Neck and head ahead of the backbone, whose blocks may be graded.

    Where the backbone is trained, what lies outside of it has
    ``head_lr_mult`` times the rate of ``optimizer``: new layers that are as
    slow as pretrained ones spoil those. Where it is not (a frozen one, a
    probe), neck and head have the plain rate, but for ``lr_width``: Adam
    moves each weight alike, so that a logit of few features moves too slowly
    at a rate that is right for many (as in https://arxiv.org/abs/2203.03466).

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
            - ``lr_width``: the width of features that ``lr`` is right for,
              where the backbone is not trained: a matrix of neck or head
              that takes C features has ``lr_width / C`` times the rate. By
              default it has the plain one.
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
        self._width = self.paramwise_cfg.get('lr_width')
        for key, value in (('head_lr_mult', self._ahead),
                           ('lr_width', self._width)):
            if not (_positive(value) or key == 'lr_width' and value is None):
                raise ValueError(f'{key} of {name} must be a number over 0, '
                                 f'got {value!r}.')
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
        super().add_params(params, module, prefix, **kwargs)
        backbone = getattr(module, 'backbone', None)
        if prefix or backbone is None:
            return
        names = {id(value): name for name, value in
                 backbone.named_parameters()}
        if any(_SHARD in name for name in names.values()):
            raise ValueError(
                f'{type(self).__name__} finds no depth of parameters that '
                'FSDP has divided: leave constructor and paramwise_cfg out '
                'of optim_wrapper.')
        inside, outside = [], []
        for group in params:
            (inside if id(group['params'][0]) in names else
             outside).append(group)
        if not inside:
            for group in outside if self._width else ():
                (value, ) = group['params']
                if value.ndim > 1:
                    group['lr'] = (group.get('lr', self.base_lr)
                                   * self._width / value[0].numel())
            return
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
