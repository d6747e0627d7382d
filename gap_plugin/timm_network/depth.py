"""How deep each parameter lies, by timm's own grouping; what is trained."""

from timm.models import group_parameters
from torch import nn


def layer_depths(model: nn.Module, coarse: bool = False) -> dict[str, int]:
    """Group a network's parameters by depth, 0 being the stem.

    Args:
        model: A timm network.
        coarse: Whether a group is a stage (else a block).

    Returns:
        Parameter name -> depth, without gaps.
    """
    if hasattr(model, 'group_matcher'):
        try:
            matcher = model.group_matcher(coarse=coarse)
        except AssertionError:  # not every matcher knows stages
            matcher = None
        if matcher is not None:
            return group_parameters(model, matcher, reverse=True)
    return _depths_by_levels(model)


def _depths_by_levels(model: nn.Module) -> dict[str, int]:
    """Stages by ``feature_info``, for networks that have no other.

    A stage is what lies between the ends of two levels; the stem is what
    lies ahead of the part of the network in which the first level ends.
    """
    ends = [level['module'] for level in model.feature_info]
    names = [name for name, _ in model.named_parameters()]
    last = {
        end: max((i for i, name in enumerate(names)
                  if f'{name}.'.startswith(f'{end}.')), default=-1)
        for end in ends
    }
    trunk = next(end for end in ends if last[end] >= 0).split('.')[0]
    start = next(i for i, name in enumerate(names)
                 if name.split('.')[0] == trunk)
    return {
        name: min(1 + sum(i > last[end] for end in ends), len(ends))
        if i >= start else 0
        for i, name in enumerate(names)
    }


def freeze(model: nn.Module, stages: int | str) -> list[str]:
    """Freeze the front of a network.

    Args:
        model: A timm network, whose parameters are changed in place.
        stages: -1: nothing; 0: the stem; k: the stem and the first k
            stages; ``'all'``: everything.

    Returns:
        Names of the frozen modules, to be kept in eval mode; by name, for
        a module may be replaced (by ``SyncBatchNorm``).

    Raises:
        ValueError: If there are fewer stages.
    """
    if stages == 'all':
        model.requires_grad_(False)
        return ['']
    if stages == -1:
        return []
    depths = layer_depths(model, coarse=True)
    deepest = max(depths.values(), default=0)
    if (not isinstance(stages, int) or isinstance(stages, bool)
            or not -1 <= stages <= deepest):
        raise ValueError(
            f"frozen_stages must be -1 (nothing), 'all', or one of "
            f'{", ".join(_group_names(depths))}; got {stages!r}.')
    for name, parameter in model.named_parameters():
        if depths[name] <= stages:
            parameter.requires_grad_(False)
    frozen: list[str] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        own = [
            depth for n, depth in depths.items()
            if n.startswith(f'{name}.' if name else '')
        ]
        if own and max(own) <= stages and module not in inside:
            frozen.append(name)
            inside.update(module.modules())
    return frozen


def tune_part(model: nn.Module, part: str) -> None:
    """Leave only a part of a network's parameters trainable.

    Args:
        model: A timm network, whose parameters are changed in place.
        part: ``'all'``: as they are; ``'bias_and_norm'``: biases, and the
            scales and shifts of norm layers (BitFit, arXiv 2106.10199).

    Raises:
        ValueError: If there is no such part.
    """
    if part not in ('all', 'bias_and_norm'):
        raise ValueError(
            f"tune must be 'all' or 'bias_and_norm', got {part!r}.")
    if part == 'all':
        return
    for module in model.modules():
        # timm's own norms have no common base
        norm = 'norm' in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if not (norm or name.endswith('bias')):
                parameter.requires_grad_(False)


def _group_names(depths: dict[str, int]) -> list[str]:
    """A readable name per depth: the modules that its parameters share."""
    names: dict[int, str] = {}
    for name, depth in depths.items():
        # 'stages.0', 'layer1', 'stem': a child of the network, or an entry
        # of a list that is one
        child, *rest = name.split('.')
        listed = rest and rest[0].isdigit() and not child[-1].isdigit()
        names.setdefault(depth, f'{child}.{rest[0]}' if listed else child)
    return [f'{depth} = {names[depth]}' for depth in sorted(names)]
