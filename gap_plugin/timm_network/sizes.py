"""Which image sizes a network can be built for."""

from dataclasses import replace

import torch
from torch import nn

from ..messages import first_line
from .create import NetworkSpec, create_bare, create_network
from .feature_map import FeaturePath, prepare
from .trace import INPUT_ERRORS, Trace
from .weights import KeyReport


def takes_size(spec: NetworkSpec) -> bool:
    """Whether a network can be built for, and run on, its ``img_size``."""
    bare = replace(spec, pretrained=False, checkpoint_path=None)
    for device in ('meta', 'cpu'):  # a few do not run on the first
        try:
            with torch.device(device):
                model, _ = create_network(bare)
                Trace(model, (spec.in_channels, *spec.img_size)).run(
                    model.forward_features)
        except INPUT_ERRORS:
            continue
        return True
    return False


def near_sizes(spec: NetworkSpec, own: tuple[int, int]) -> list[int]:
    """Square sizes near ``spec.img_size`` that the network takes.

    Args:
        spec: A network that does not take its ``img_size``.
        own: Its own height and width.

    Returns:
        Up to four, rising; multiples of 32 or, for networks of windows and
        patches, of an eighth of their own size.
    """
    wanted = max(spec.img_size)
    steps = {32, max(own[0] // 8, 1)}
    candidates = {own[0]}.union(*(
        {(wanted // step + i) * step for i in (-1, 0, 1, 2)}
        for step in steps))
    near = sorted((c for c in candidates if c > 0 and c != wanted),
                  key=lambda c: abs(c - wanted))
    found: list[int] = []
    for size in near:
        if takes_size(replace(spec, img_size=(size, size))):
            found.append(size)
        if len(found) == 4:
            break
    return sorted(found)


def prepared(
    spec: NetworkSpec, out_feature: str,
    out_indices: tuple[int, ...] | None
) -> tuple[nn.Module, KeyReport | None, FeaturePath]:
    """Build a network and find its map; a size that it refuses is named."""
    try:
        model, report = create_network(spec)
        size = (spec.in_channels, *image_size(spec, model))
        return model, report, prepare(model, out_feature, out_indices, size,
                                      spec.key)
    except INPUT_ERRORS as error:
        if spec.img_size is None or takes_size(spec):
            raise
        plain = create_bare(replace(spec, img_size=None))
        own = image_size(replace(spec, img_size=None), plain)
        near = ', '.join(map(str, near_sizes(spec, own))) or own
        height, width = spec.img_size
        raise ValueError(
            f'img_size: {spec.model_name!r} cannot take images of {height} '
            f'x {width}; sizes near it that it takes: {near} '
            f'({first_line(error)[:120]}).') from None


def image_size(spec: NetworkSpec, model: nn.Module) -> tuple[int, int]:
    """Height and width of an image that the network takes."""
    return spec.img_size or tuple(model.pretrained_cfg['input_size'][1:])
