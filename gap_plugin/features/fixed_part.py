"""What of a classifier a linear probe leaves as it is."""

import hashlib
from typing import Any

import torch
from torch import nn


class FixedPart(nn.Module):
    """What a linear probe leaves as it is: preprocessor, backbone, pooling.

    Args:
        model: An ``ImageClassifier``, ours or stock. Of its neck, the parts
            without parameters and buffers that come first belong here.

    Attributes:
        necks (list[str]): Names of these parts in the model.
        in_tuple (bool): Whether what follows gets a tuple; known after a
            pass.
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
    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Features of a batch of the dataloader.

        Returns:
            ``(N, C)``.

        Raises:
            ValueError: If there is more than one map, or it is not pooled.
        """
        inputs = self.data_preprocessor(batch, training=False)['inputs']
        features = self.pool(self.backbone(inputs))
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
        return features


def weights_of(module: nn.Module) -> str:
    """What stands for all weights and statistics of a module."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1)
                      .view(torch.uint8).numpy())
    return digest.hexdigest()
