"""Which images: a folder, a pattern, a list; as the test pipeline has them."""

import glob
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS
from torch import nn
from torch.utils.data import Dataset

from ..datasets import bind_pipeline, source_of
from ..datasets.class_folders import (
    files_below,
    suffixes,
    tell_passed_over,
)
from ..datasets.lists import read_names
from ..datasets.loading import unreadable
from ..datasets.patterns import fixed_part, matching
from ..messages import shorten

#: How a file of bands that Pillow does not know may end.
_BANDS = '.npy'


@dataclass
class Images(Sequence):
    """Images, by their names below a folder.

    Attributes:
        root: The folder.
        names: Relative to it, with ``/``; those of a list as it has them.
    """

    root: str
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> str:
        """Where an image is."""
        name = self.names[row]
        return name if '://' in name else os.path.join(self.root, name)


def find_images(sources: Iterable[str | os.PathLike]) -> Images:
    """Images that people name, each once, in an order that stays.

    Args:
        sources: Each a folder, which is searched to any depth; a pattern,
            in which ``**`` stands for folders of any depth; an image; or a
            list of images, a line each, as read by
            :func:`~gap_plugin.datasets.lists.read_names`. Of folders and
            patterns, images are the files whose names end as those of
            images do, without what is hidden, each once, however many links
            lead to it.

    Raises:
        FileNotFoundError: If there is no such thing.
        ValueError: If it has no images.
    """
    found = [_images_of(os.fspath(source)) for source in sources]
    if len(found) == 1:
        root, names = found[0]
    else:
        try:
            root = os.path.commonpath([os.path.abspath(r) for r, _ in found])
        except ValueError:  # on several drives of Windows
            root = ''
        names = [_below(os.path.join(r, name), root) if '://' not in name
                 else name for r, part in found for name in part]
    known = list(dict.fromkeys(names))
    if len(known) < len(names):
        warnings.warn(f'{len(names) - len(known)} images are named more than '
                      'once: each gets one row.', stacklevel=2)
    return Images(root, known)


def _images_of(source: str) -> tuple[str, list[str]]:
    if os.path.isdir(source):
        return source, _images_among(files_below(source), source, source)
    if os.path.isfile(source):
        if _is_image(source) or not unreadable([source]):
            folder, name = os.path.split(source)
            return folder, [name]
        folder, names = read_names(source, (
            os.path.dirname(os.path.abspath(source)), os.getcwd()))
        if not names:
            raise ValueError(f'{source!r} lists no images: give it a line '
                             'for each.')
        return folder, names
    if not glob.has_magic(source):
        raise FileNotFoundError(
            f'images {source!r} are not there: name a folder, an image, a '
            "list of images or a pattern, such as 'photos/**/*.jpg'.")
    root = fixed_part(source)
    return root, _images_among(matching(source), root, source)


def _is_image(name: str) -> bool:
    end = os.path.splitext(name)[1].lower()
    return end in suffixes() or end == _BANDS


def _images_among(files: Iterable[str], root: str, source: str) -> list[str]:
    """Names, below a folder, of those files that are images."""
    names, others = [], []
    for file in files:
        if _is_image(file):
            names.append(_below(file, root))
        else:
            others.append(file)
    if not names:
        raise ValueError(
            f'{source!r} has no images'
            + (f' among {len(others)} files, such as {shorten(others[:1])}'
               if others else '') + ': name a folder, a pattern or a list '
            'that has some.')
    tell_passed_over(others, len(names), source)
    return names


def _below(file: str, root: str) -> str:
    """The name of a file below a folder, the same on every system."""
    return os.path.relpath(file, root or os.curdir).replace(os.sep, '/')


class Samples(Dataset):
    """Images through the test pipeline of a config.

    Args:
        images: Their paths.
        cfg: The config. Where its dataset gives images that are loaded
            already, such as CIFAR, ``LoadTimmImage`` loads the files.
        model: Whose images these are.

    Raises:
        ValueError: If the config has no test pipeline.
    """

    def __init__(self, images: Sequence[str], cfg: Config,
                 model: nn.Module) -> None:
        self.images = images
        steps = list(test_dataset(cfg)['pipeline'])
        source = source_of(model)
        if not _loads(steps[0]):
            mean = getattr(model.data_preprocessor, 'mean', None)
            channels = 3 if mean is None else len(mean)
            loader = dict(type='LoadTimmImage', in_channels=(
                None if source else channels))
            # datasets of arrays give RGB, unless it is to be made of them
            turned = getattr(model.data_preprocessor, 'to_rgb', True)
            steps = [loader, *([] if turned else [_to_rgb]), *steps]
        self.pipeline = Compose(steps)
        if source is not None:
            bind_pipeline(self.pipeline, source)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict:
        """A sample, as the dataloader of a test has it."""
        found = self.pipeline(dict(img_path=self.images[row], sample_idx=row))
        if found is None:
            raise ValueError('the pipeline of the config gives nothing of it')
        return found


class Photos(Samples):
    """Images as they are loaded: ``(H, W, C)`` uint8, R, G, B or grey.

    Args:
        images: Their paths.
        cfg: A config, which loads them; None for ``LoadTimmImage``.
        channels: Of the images.
    """

    def __init__(self, images: Sequence[str], cfg: Config | None,
                 channels: int) -> None:
        self.images = images
        step = dict(type='LoadTimmImage')
        if cfg is not None and _loads(test_dataset(cfg)['pipeline'][0]):
            step = dict(test_dataset(cfg)['pipeline'][0])
        if step['type'] == 'LoadTimmImage':
            step['in_channels'] = channels
        # without a config, no scope says whose transforms these are
        self.pipeline = Compose([TRANSFORMS.build(step), _to_rgb,
                                 partial(_photo, channels)])


def test_loader(cfg: Config | None, batch_size: int | None = None,
                workers: int | None = None) -> dict:
    """The dataloader of a config's test.

    Args:
        cfg: The config; None for batches of 16, read by two workers.
        batch_size: In place of that of the config.
        workers: Processes, likewise.

    Raises:
        ValueError: If one of them is out of its range.
    """
    for name, value, least in (('batch_size', batch_size, 1),
                               ('workers', workers, 0)):
        if value is not None and value < least:
            raise ValueError(f'{name}={value} must be {least} or more.')
    loader = (dict(batch_size=16, num_workers=2) if cfg is None else
              dict(cfg.get('test_dataloader') or cfg.get('val_dataloader')))
    if batch_size is not None:
        loader['batch_size'] = batch_size
    if workers is not None:
        loader['num_workers'] = workers
    return loader


def test_dataset(cfg: Config) -> dict:
    """The dataset of a config's test, which has a pipeline.

    Raises:
        ValueError: If there is none.
    """
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    dataset = loader.get('dataset') or {}
    while not dataset.get('pipeline'):
        inner = dataset.get('dataset') or (dataset.get('datasets') or [{}])[0]
        if not inner:
            raise ValueError(
                'the config has no test_dataloader whose dataset has a '
                'pipeline: add it, for images go through that pipeline.')
        dataset = inner
    return dataset


def _loads(step: Any) -> bool:
    kind = step.get('type') if isinstance(step, dict) else type(step)
    return 'load' in getattr(kind, '__name__', str(kind)).lower()


def _to_rgb(results: dict) -> dict:
    """What is loaded as BGR, in the order that the network takes."""
    if results['img'].ndim == 3 and results['img'].shape[2] == 3:
        results['img'] = np.ascontiguousarray(results['img'][..., ::-1])
    return results


def _photo(channels: int, results: dict) -> np.ndarray:
    image = np.atleast_3d(results['img'])
    if image.dtype != np.uint8 or image.shape[2] != channels:
        raise ValueError(f'it is {image.dtype} of {image.shape[2]} channels, '
                         f'and not uint8 of {channels}')
    return image
