"""What kind of layers a network is made of."""

from torch import nn


def is_convolutional(model: nn.Module) -> bool:
    """Whether a network mixes positions by convolutions, in the main.

    It does where convolutions that overlap are more than attention layers.
    Those that cut an image into patches do not count. So a ConvNeXt is
    convolutional, although most of its weights lie in linear layers; a ViT, a
    Swin and an MLP-Mixer are not.

    Args:
        model: Any network.
    """
    convolutions = attentions = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            convolutions += any(
                size > step for size, step in zip(
                    module.kernel_size, module.stride, strict=True))
        attentions += isinstance(getattr(module, 'num_heads', None), int)
    return convolutions > attentions
