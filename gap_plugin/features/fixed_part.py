"""What of a classifier a linear probe leaves as it is."""

from typing import Any

import torch
from torch import Tensor, nn


class FixedPart(nn.Module):
    """What a linear probe leaves as it is: preprocessor, backbone, pooling.

    Args:
        model: An ``ImageClassifier``, ours or stock. Of its neck, the parts
            without parameters and buffers that come first belong here.

    Attributes:
        necks (list[str]): Names of these parts in the model.
        in_tuple (bool): Whether what follows gets a tuple; known from
            :meth:`width_of` on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.data_preprocessor = model.data_preprocessor
        self.backbone = model.backbone
        self.pool = nn.Sequential()
        self.necks: list[str] = []
        self.in_tuple = True
        neck = getattr(model, 'neck', None)
        if neck is None:
            parts = {}
        elif isinstance(neck, nn.Sequential):
            parts = {f'neck.{name}': m for name, m in neck.named_children()}
        else:
            parts = {'neck': neck}
        for name, part in parts.items():
            if len(part.state_dict()):
                break
            self.necks.append(name)
            self.pool.append(part)
        self.eval()

    @torch.no_grad()
    def images(self, batch: dict[str, Any]) -> Tensor:
        """What the network is given of a batch of the dataloader.

        Images from pinned memory go to a GPU without waiting for it.
        """
        device = next(self.parameters()).device
        inputs = batch['inputs']
        batch['inputs'] = (
            inputs.to(device, non_blocking=True) if torch.is_tensor(inputs)
            else [x.to(device, non_blocking=True) for x in inputs])
        return self.data_preprocessor(batch, training=False)['inputs']

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(N, C)`` of preprocessed images."""
        features = self.pool(self.backbone(images))
        return features[0] if isinstance(features, (tuple, list)) else features

    @torch.no_grad()
    def width_of(self, images: Tensor) -> int:
        """How many features there are.

        Raises:
            ValueError: If there is more than one map, or it is not pooled.
        """
        features = self.pool(self.backbone(images))
        self.in_tuple = isinstance(features, (tuple, list))
        if self.in_tuple:
            if len(features) != 1:
                raise ValueError(
                    f'the backbone gives {len(features)} maps, a store holds '
                    'one: give out_indices of the backbone one level.')
            (features, ) = features
        if features.ndim != 2:
            raise ValueError(
                f'features of shape {tuple(features.shape)} are not pooled: '
                'put a GAPNeck, or another pooling without parameters, '
                'first in the neck.')
        return features.shape[1]
