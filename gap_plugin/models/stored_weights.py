"""What a backbone's saved weights say, and how they are made to fit it."""

from typing import Any

import torch
from torch import nn

from ..timm_network import IMAGE_SIZE, FeaturePath, NetworkSpec, adapt


class StoredWeights:
    """Sees to the weights that a backbone saves and is given.

    Args:
        backbone: The backbone; its ``timm_model`` is there.
        spec: What that was built from.
        path: How its features are read.

    Attributes:
        idle: Names that reach no output, and need not be loaded.
    """

    def __init__(self, backbone: nn.Module, spec: NetworkSpec,
                 path: FeaturePath) -> None:
        self.backbone = backbone
        self.spec = spec
        # checkpoints of TIMMBackbone hold what has been taken out
        self.taken_out = tuple(f'{name}.' for name in path.unused_modules)
        self.idle = tuple(f'timm_model.{name}'
                          for name in path.unused_parameters)
        backbone._register_load_state_dict_pre_hook(self.before_load)
        backbone._register_state_dict_hook(self.save_size)

    def before_load(self, state_dict: dict[str, torch.Tensor], prefix: str,
                    metadata: dict, *_: Any) -> None:
        """Adapt weights that are about to be loaded, whoever does it.

        Args:
            state_dict: Name -> tensor; changed in place.
            prefix: What stands ahead of the backbone's own names.
            metadata: What was saved with the backbone's weights.
        """
        if adapt(state_dict, f'{prefix}timm_model.', self.backbone.timm_model,
                 self.spec, self.taken_out, metadata.get(IMAGE_SIZE)):
            self.backbone.has_weights = True

    def save_size(self, _: nn.Module, state_dict: dict, prefix: str,
                  metadata: dict) -> None:
        """Say with the weights which image size they are for."""
        metadata[IMAGE_SIZE] = tuple(self.backbone.image_size)
