"""How deep each parameter lies, by timm's own grouping."""

from torch import nn
from timm.models import group_parameters


def layer_depths(model: nn.Module, coarse: bool = False) -> dict[str, int]:
    """Group a network's parameters by depth, 0 being the stem.

    Args:
        model: A timm network.
        coarse: Whether a group is a stage (else a block).

    Returns:
        Parameter name -> depth, without gaps.
    """
    if hasattr(model, 'group_matcher'):
        matcher = model.group_matcher(coarse=coarse)
        return group_parameters(model, matcher, reverse=True)
    # 29 networks have no matcher; their levels tell the stages all the same
    stages = [level['module'] for level in model.feature_info]
    depths, depth = {}, 0
    for name, _ in model.named_parameters():
        for i, stage in enumerate(stages):
            if f'{name}.'.startswith(f'{stage}.'):
                depth = max(depth, i + 1)
        depths[name] = depth
    return depths


def freeze(model: nn.Module, stages: int | str) -> list[nn.Module]:
    """Freeze the front of a network.

    Args:
        model: A timm network, whose parameters are changed in place.
        stages: -1: nothing; 0: the stem; k: the stem and the first k
            stages; ``'all'``: everything.

    Returns:
        The frozen modules, to be kept in eval mode.

    Raises:
        ValueError: If there are fewer stages.
    """
    if stages == 'all':
        model.requires_grad_(False)
        return [model]
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
    frozen: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        own = [
            depth for n, depth in depths.items()
            if n.startswith(f'{name}.' if name else '')
        ]
        if own and max(own) <= stages and module not in inside:
            frozen.append(module)
            inside.update(module.modules())
    return frozen


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
