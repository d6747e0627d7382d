"""Position embeddings of weights that were made for another image size.

timm's own filters take every source for square. What a file says of its
image size, as ours do, is followed here; what cannot be known is refused.
"""

import inspect
from collections.abc import Callable
from math import isqrt, prod

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

Size = tuple[int, int]
_TABLE = '.relative_position_bias_table'


class Grids:
    """The grids of one network.

    Args:
        model: The network, at the size that the weights are wanted for.
        size: That size.
        twin: Builds it for another size, without weights.
        told: What messages call the weights.

    Attributes:
        notes: What was taken for granted.
    """

    def __init__(self, model: nn.Module, size: Size,
                 twin: Callable[[Size], nn.Module], told: str) -> None:
        self.model = model
        self.size = size
        self.twin = twin
        self.told = told
        self.notes: list[str] = []

    def adapt(self, tensors: dict[str, torch.Tensor], source: Size | None,
              ours: bool = False) -> dict[str, torch.Tensor]:
        """Resample what depends on the image size, by its true grid.

        Args:
            tensors: Under the network's names.
            source: The image size that they are for, if it is known.
            ours: Whether this package has written them: what has as many
                positions is for the same grid then, if nothing says else.

        Returns:
            The tensors; what is square is left to timm's filter.

        Raises:
            ValueError: If the grid cannot be known.
        """
        if source == self.size or (source is None and ours
                                   and not self.other_shape(tensors)):
            # for timm's filter, which takes the size of its own weights
            self.model.pretrained_model_args = dict(img_size=self.size)
            return tensors
        tensors = dict(tensors)
        self._absolute(tensors, source)
        if source is not None:
            self._relative(tensors, source)
            left = self.other_shape(tensors)
            if source[0] != source[1] and left:
                self._refuse(left[0], f'for images of {source[0]} x '
                             f'{source[1]}, which this network cannot be '
                             'resampled from')
        return tensors

    def other_shape(self, tensors: dict[str, torch.Tensor]) -> list[str]:
        """Tables of positions that have another shape in the network."""
        own = self.model.state_dict()
        return [name for name, value in tensors.items()
                if ('pos' in name or 'attention_bias' in name)
                and name in own and own[name].shape != value.shape]

    def _absolute(self, tensors: dict[str, torch.Tensor],
                  source: Size | None) -> None:
        own = getattr(self.model, 'pos_embed', None)
        value = tensors.get('pos_embed')
        embed = getattr(self.model, 'patch_embed', None)
        grid = getattr(embed, 'grid_size', None)
        if (grid is None or not torch.is_tensor(own) or value is None
                or own.ndim != 3 or value.shape[2:] != own.shape[2:]):
            return
        grid = tuple(grid)
        prefix = own.shape[1] - prod(grid)
        tokens = value.shape[1] - prefix
        old = None
        if source is not None:
            old = tuple(side // patch for side, patch in
                        zip(source, embed.patch_size, strict=True))
        if old is None or prod(old) != tokens:
            side = isqrt(max(tokens, 0))
            square, same = side * side == tokens, tokens == prod(grid)
            # other formats have other tokens ahead of those of the grid
            others = {value.shape[1] - k for k in (0, 1)}
            if square and same and old is None and grid[0] != grid[1]:
                self._refuse('pos_embed', f'for {tokens} positions, {side} x '
                             f'{side} or {grid[0]} x {grid[1]}')
            if same and not square:
                self.notes.append(
                    f'{self.told}: its {tokens} positions are taken for '
                    f'{grid[0]} x {grid[1]}, as those of img_size')
                return
            if not square and not any(isqrt(n)**2 == n for n in others):
                self._refuse('pos_embed', f'for {tokens} positions, of a '
                             'grid that the file does not tell')
            if not square or not same:
                return  # a matter of timm's filter
            old = (side, side)
        if old != grid:
            tensors['pos_embed'] = resample_abs_pos_embed(
                value, new_size=list(grid), old_size=list(old),
                num_prefix_tokens=prefix)
        self.model.pretrained_model_args = dict(img_size=self.size)

    def _relative(self, tensors: dict[str, torch.Tensor],
                  source: Size) -> None:
        names = [name for name in tensors if name.endswith(_TABLE)]
        if not names:
            return
        was = dict(self.twin(source).named_modules())
        now = dict(self.model.named_modules())
        for name in names:
            part = name.removesuffix(_TABLE)
            old = getattr(was.get(part), 'window_size', None)
            new = getattr(now.get(part), 'window_size', None)
            if old is None or new is None or tuple(old) == tuple(new):
                continue
            known = {} if old[0] == old[1] else dict(old_window_size=old)
            if known and 'old_window_size' not in inspect.signature(
                    resize_rel_pos_bias_table).parameters:
                self._refuse(name, f'for windows of {old[0]} x {old[1]}, '
                             'which this timm cannot resample')
            tensors[name] = resize_rel_pos_bias_table(
                tensors[name], new, now[part].relative_position_bias_table
                .shape, **known)

    def _refuse(self, name: str, why: str) -> None:
        raise ValueError(
            f'{self.told} does not fit images of {self.size[0]} x '
            f'{self.size[1]}: {name!r} is {why}; build the backbone with the '
            'img_size of its training, load it there by load_state_dict of '
            'timm_model, and save the state_dict() of the backbone, which '
            'tells its size.')
