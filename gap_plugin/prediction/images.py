"""Which images: a folder, a pattern, a list; as the test pipeline has them."""

import fnmatch
import glob
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from torch import nn
from torch.utils.data import Dataset

from ..arguments import check_arguments
from ..datasets import bind_pipeline, source_of
from ..datasets.class_folders import (
    files_below,
    suffixes,
    tell_passed_over,
)
from ..datasets.lists import read_names
from ..datasets.loading import unreadable
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
    fixed = []
    for part in _parts(source):
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = os.path.join(*fixed) if fixed else ''
    return root, _images_among(_matching(source), root, source)


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


def _parts(path: str) -> list[str]:
    """Parts of a path, the root of a drive among the first."""
    drive, rest = os.path.splitdrive(path)
    if os.altsep:
        rest = rest.replace(os.altsep, os.sep)
    first = drive + os.sep * rest.startswith(os.sep)
    return [first] * bool(first) + [p for p in rest.split(os.sep) if p]


def _matching(pattern: str) -> Iterator[str]:
    """Files of a pattern, in order, each once, without what is hidden.

    Ours and not that of :mod:`glob` where folders are searched to any depth:
    a link to a folder above would lead that one round and round.
    """
    parts = _parts(pattern)
    deep = parts.index('**') if '**' in parts else len(parts)
    seen: set[str] = set()
    starts = (sorted(glob.glob(os.path.join(*parts[:deep]))) if deep
              else [os.curdir])
    for start in starts:
        for file in files_below(start) if os.path.isdir(start) else [start]:
            rest = _below(file, start).split('/') if file != start else []
            real = os.path.realpath(file)
            if real not in seen and _fits(rest, parts[deep:]):
                seen.add(real)
                yield file


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path are those of a pattern."""
    if not pattern:
        return not parts
    if pattern[0] == '**':
        return len(pattern) == 1 or any(_fits(parts[i:], pattern[1:])
                                        for i in range(len(parts)))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(
        parts[1:], pattern[1:])


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
        if not any(_loads(step) for step in steps[:1]):
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


def test_loader(cfg: Config, batch_size: int | None = None,
                workers: int | None = None) -> dict:
    """The dataloader of a config's test.

    Args:
        cfg: The config.
        batch_size: In place of that of the config.
        workers: Processes, likewise.
    """
    check_arguments('a prediction', count_or_none=dict(batch_size=batch_size),
                    amount_or_none=dict(workers=workers))
    loader = dict(cfg.get('test_dataloader') or cfg.get('val_dataloader'))
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
