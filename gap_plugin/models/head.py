"""The linear classifier."""

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import nn

from .checks import check_labels, check_width


@MODELS.register_module()
class LinearHead(ClsHead):
    """One linear layer behind pooled features: logits of K classes.

    Args:
        num_classes: Number K of classes.
        in_channels: Width C of the features.
        bias: Whether the layer has a bias.
        dropout: Probability, 0 to 1, of dropping a feature in training.
        init_cfg: Config of MMEngine's weight initialisation.
        **kwargs: ``loss``, ``topk`` and ``cal_acc`` of the stock
            ``ClsHead``.

    Raises:
        ValueError: If ``num_classes`` or ``in_channels`` is not positive, or
            ``dropout`` no probability.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 bias: bool = True,
                 dropout: float = 0.,
                 init_cfg: dict | list[dict] | None = dict(
                     type='Normal', layer='Linear', std=0.01),
                 **kwargs) -> None:
        super().__init__(init_cfg=init_cfg, **kwargs)
        for name, value in dict(
                num_classes=num_classes, in_channels=in_channels).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} of LinearHead must be a positive '
                                 f'integer, got {value!r}.')
        if not 0 <= dropout <= 1:
            raise ValueError(f'dropout of LinearHead must be from 0 to 1, got '
                             f'{dropout!r}.')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes, bias)

    def pre_logits(
            self,
            feats: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The features ahead of dropout: ``(N, C)``, the last of a tuple."""
        return feats[-1] if isinstance(feats, (list, tuple)) else feats

    def forward(
            self,
            feats: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Classify.

        Args:
            feats: ``(N, C)``, or a tuple whose last entry is.

        Returns:
            Logits ``(N, K)``.

        Raises:
            ValueError: If the features are no vectors of this width.
        """
        feats = self.pre_logits(feats)
        check_width(self, feats, self.in_channels)
        if feats.ndim != 2:
            raise ValueError(f'LinearHead takes vectors (N, C), got '
                             f'{tuple(feats.shape)}; put a GAPNeck ahead.')
        return self.fc(self.dropout(feats))

    def _get_loss(self, cls_score: torch.Tensor, data_samples: list,
                  **kwargs) -> dict:
        """As ``ClsHead``, with the labels checked.

        Out of range they end in an index error of the loss on a CPU, and in
        an assertion that takes the whole process down on a GPU.
        """
        scored = 'gt_score' in data_samples[0]  # by a batch augmentation
        if scored:
            lowest, highest = 0, len(data_samples[0].gt_score) - 1
        else:
            labels = torch.cat([sample.gt_label for sample in data_samples])
            lowest, highest = map(int, labels.aminmax())
        check_labels(lowest, highest, self.num_classes, 'LinearHead',
                     'the data', scored)
        return super()._get_loss(cls_score, data_samples, **kwargs)
