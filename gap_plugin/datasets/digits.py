"""Handwritten digits that come in a package."""

from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS

from ..arguments import check_arguments

_SPLITS = ('train', 'test', 'all')


@DATASETS.register_module()
class Digits(BaseDataset):
    """1797 handwritten digits, the images of scikit-learn's ``load_digits``.

    Grey images of 8 x 8 pixels, given as three equal channels, 0 to 255.
    Every fifth image of each class is held out, in the order of the file.

    Args:
        split: ``'train'`` (1442 images), ``'test'`` (355) or ``'all'``.
        pipeline: Transforms; the images need no loading.
        **kwargs: Further arguments of MMEngine's ``BaseDataset``.

    Raises:
        ValueError: If there is no such split.
        ImportError: If scikit-learn is missing.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self,
                 split: str = 'train',
                 pipeline: list = [],
                 **kwargs: Any) -> None:
        if split not in _SPLITS:
            raise ValueError(
                f'split of Digits must be one of {_SPLITS}, got {split!r}.')
        check_arguments('Digits', steps=dict(pipeline=pipeline))
        self.split = split
        super().__init__(pipeline=pipeline, **kwargs)

    @property
    def CLASSES(self) -> tuple[str, ...]:
        """Names of the classes, where ClassNumCheckHook looks for them.

        MMPretrain's own base class has it, but importing that takes time and,
        in the fork, prints.
        """
        return self.metainfo['classes']

    def load_data_list(self) -> list[dict]:
        """Read the images: ``img`` (8, 8, 3) uint8 and ``gt_label``."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ImportError('Digits needs scikit-learn: pip install '
                              'scikit-learn') from None
        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        # the position of each image among those of its class
        rank = np.zeros(len(data.target), int)
        for label in range(10):
            of_label = data.target == label
            rank[of_label] = np.arange(of_label.sum())
        chosen = {
            'train': rank % 5 != 4,
            'test': rank % 5 == 4,
            'all': rank >= 0
        }[self.split]
        return [
            dict(
                img=np.repeat(images[i, :, :, None], 3, axis=2),
                img_path=f'digits/{i}.png',
                gt_label=int(data.target[i])) for i in np.flatnonzero(chosen)
        ]
