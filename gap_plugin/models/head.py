"""The linear classifier."""

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from ..arguments import check_arguments
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
        TypeError: If an argument has the wrong type.
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
        check_arguments(
            'LinearHead', flag=dict(bias=bias), share=dict(dropout=dropout),
            count=dict(num_classes=num_classes, in_channels=in_channels),
            configs_or_none=dict(init_cfg=init_cfg))
        super().__init__(init_cfg=init_cfg, **kwargs)
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
        """As ``ClsHead``, with labels checked that are on the CPU."""
        self._check(data_samples)
        return super()._get_loss(cls_score, data_samples, **kwargs)

    def _check(self, data_samples: list) -> None:
        """Refuse labels that there is no class for.

        They end in an index error of the loss on a CPU, and in an assertion
        that takes the whole process down on a GPU. There, looking at them
        would wait for all that the GPU has still to do.
        """
        if 'gt_score' in data_samples[0]:  # by a batch augmentation
            scores = len(data_samples[0].gt_score)
            check_labels(0, scores - 1, self.num_classes, 'LinearHead',
                         'the data', all_scored=True)
            return
        if 'gt_label' not in data_samples[0]:
            raise ValueError(
                'the images have no labels, which LinearHead is trained by: '
                'give their dataset some (with_label=True of CustomDataset, '
                'and class folders or a list).')
        labels = torch.cat([sample.gt_label for sample in data_samples])
        if labels.device.type != 'cpu':
            return
        # as of torch's cross entropy, which MMPretrain's calls
        ignored = getattr(self.loss_module, 'ignore_index', -100)
        labels = labels[labels != ignored]
        if len(labels):
            check_labels(*map(int, labels.aminmax()), self.num_classes,
                         'LinearHead', 'the data')

    def check_batch(self, preprocessor: nn.Module, args: tuple) -> None:
        """The same of a batch that is about to move to the GPU, or is tested.

        What there is no class for would count as wrong there. A forward
        pre-hook of the data preprocessor, which
        :class:`TimmFeatureClassifier` registers.
        """
        data = args[0] if args else None
        samples = data.get('data_samples') if isinstance(data, dict) else None
        device = torch.device(getattr(preprocessor, 'device', 'cpu'))
        if (device.type != 'cpu' or not self.training) and samples and all(
                isinstance(sample, DataSample) and 'gt_label' in sample
                for sample in samples):
            self._check(samples)
