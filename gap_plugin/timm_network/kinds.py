"""Of what kind of layers a network is made."""

from torch import nn


def has_convolutions(model: nn.Module) -> bool:
    """Whether convolutions are a quarter of the layers that hold weights.

    Such networks compute faster on images that lie in memory as NHWC: hybrids
    of convolutions and attention too, and no network more slowly. Those that
    merely cut an image into patches have nothing of it. Nor are those taken
    that skip pixels of the image itself (FastViT): on CPUs, torch 2.14 writes
    past the end of its memory in the gradient of such a layer.

    Args:
        model: Any network.
    """
    if any(isinstance(m, nn.Conv2d) and m.in_channels < 8
           and m.kernel_size == (1, 1) != m.stride for m in model.modules()):
        return False
    convolutions = _count(model, nn.Conv2d)
    return convolutions >= (convolutions + _count(model, nn.Linear)) / 4


def is_transformer(model: nn.Module) -> bool:
    """Whether positions are mixed by something else than convolutions.

    They are by attention where there is a layer of it for each three
    convolutions that overlap, as in a PVT, whose blocks have convolutions,
    too. Without attention and without such convolutions, as in an MLP-Mixer,
    it is by linear layers.

    Args:
        model: Any network.
    """
    overlapping = attentions = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            overlapping += any(size > step for size, step in zip(
                module.kernel_size, module.stride, strict=True))
        heads = getattr(module, 'num_heads', getattr(module, 'heads', None))
        attentions += isinstance(heads, int)
    return overlapping <= 3 * attentions


def _count(model: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())
