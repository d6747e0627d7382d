"""What images there are, as a config states them; checked for training."""

import collections
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..messages import shorten
from .lists import list_text, read_as_it_is, read_list
from .loading import unreadable

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')

#: Datasets of MMPretrain -> class, number of classes, split for validation,
#: channels, and whether the images are files that have to be read.
KNOWN = {
    'cifar10': ('CIFAR10', 10, 'test', 3, False),
    'cifar100': ('CIFAR100', 100, 'test', 3, False),
    'mnist': ('MNIST', 10, 'test', 1, False),
    'fashion-mnist': ('FashionMNIST', 10, 'test', 1, False),
    'imagenet': ('ImageNet', 1000, 'val', 3, True),
}


@dataclass
class Data:
    """A dataset, as a config states it.

    Attributes:
        classes: Names, empty where the dataset class knows them.
        count: Number of classes.
        train: Arguments of the dataset for training.
        val: And for validation.
        size: Number of training images, None if not known.
        in_channels: Channels of the image.
        load: Whether files have to be read.
        rgb: Whether its images are RGB, and not BGR as files are loaded.
        lists: Annotation files to write: path -> text.
    """

    classes: list[str]
    count: int
    train: dict[str, Any]
    val: dict[str, Any]
    size: int | None = None
    in_channels: int = 3
    load: bool = True
    rgb: bool = False
    lists: dict[Path, str] = field(default_factory=dict)


def images_by_class(root: Path, read: bool) -> dict[str, list[Path]]:
    """Images of each class folder, as MMPretrain's ``CustomDataset`` finds.

    Args:
        root: Where the class folders are.
        read: Whether files that cannot be read are refused.

    Raises:
        ValueError: If a class has none, or a file cannot be read.
    """
    found = {
        folder.name: sorted(
            Path(base, name)
            for base, _, names in os.walk(folder, followlinks=True)
            for name in names if name.lower().endswith(SUFFIXES))
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith('.')
    }
    if not any(found.values()):
        raise ValueError(f'no images ({", ".join(SUFFIXES)}) in class '
                         f'folders under {str(root)!r}: put them into '
                         '<class>/<image>.')
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise ValueError(f'no images in {shorten(empty)} under {str(root)!r}: '
                         'fill or remove the folders.')
    if read:
        refuse_unreadable(p for paths in found.values() for p in paths)
    return found


def refuse_unreadable(paths: Iterable[Path]) -> None:
    """Refuse files that are no images.

    Raises:
        ValueError: With the first names.
    """
    bad = unreadable(paths)
    if bad:
        raise ValueError(f'{len(bad)} files cannot be read as images: '
                         f'{shorten(bad)}; remove or replace them.')


def folder_data(root: Path, out: Path, share: float, seed: int,
                read: bool) -> Data:
    """A folder of class folders, split already or not.

    Args:
        root: The folder.
        out: Of the config, beside which lists are written.
        share: Of each class that is held out.
        seed: Of the split.
        read: Whether files that cannot be read are refused.

    Raises:
        ValueError: If it cannot be trained on.
    """
    if (root / 'train').is_dir() != (root / 'val').is_dir():
        there = 'train' if (root / 'train').is_dir() else 'val'
        raise ValueError(f'{str(root)!r} has {there}/ alone: give it train/ '
                         'and val/, or class folders only.')
    if (root / 'train').is_dir():
        hidden = [str(p.relative_to(root)) for s in ('train', 'val')
                  for p in sorted((root / s).glob('.*')) if p.is_dir()]
        if hidden:
            raise ValueError(f'{shorten(hidden)} under {str(root)!r} would '
                             'count as classes: remove the hidden folders.')
        sides = {s: images_by_class(root / s, read) for s in ('train', 'val')}
        names = sorted(sides['train'])
        differing = sorted(set(sides['train']) ^ set(sides['val']))
        if differing:
            raise ValueError(
                f'classes differ between train/ and val/ of {str(root)!r}: '
                f'{shorten(differing)} are in one of them only.')
        _refuse_one_class(names, root)
        parts = [dict(type='CustomDataset', data_root=str(root),
                      data_prefix=side, classes=names) for side in sides]
        return Data(names, len(names), *parts,
                    size=sum(map(len, sides['train'].values())))
    found = images_by_class(root, read)
    names = sorted(found)
    _refuse_one_class(names, root)
    few = [name for name in names if len(found[name]) < 2]
    if few:
        raise ValueError(f'{shorten(few)} under {str(root)!r} have one image '
                         'each, which cannot be split: add images.')
    rng = random.Random(seed)
    sides = dict(train=[], val=[])
    for label, name in enumerate(names):
        paths = [p.relative_to(root).as_posix() for p in found[name]]
        rng.shuffle(paths)
        held = min(max(round(len(paths) * share), 1), len(paths) - 1)
        sides['val'] += [(p, label) for p in sorted(paths[:held])]
        sides['train'] += [(p, label) for p in sorted(paths[held:])]
    lists = {out.with_name(f'{out.stem}_{side}.txt'): list_text(images)
             for side, images in sides.items()}
    parts = [dict(type='CustomDataset', data_root=str(root),
                  ann_file=str(path), data_prefix='', classes=names)
             for path in lists]
    return Data(names, len(names), *parts, size=len(sides['train']),
                lists=lists)


def _refuse_one_class(names: list[str], where: Any) -> None:
    if len(names) < 2:
        raise ValueError(f'{str(where)!r} has the class {names[0]!r} alone: '
                         'a classifier needs two at least.')


def listed_data(root: Path, out: Path, train: Path, val: Path,
                names: list[str] | None) -> Data:
    """Lists of images and labels, for ``CustomDataset``.

    Args:
        root: What the images are relative to.
        out: Of the config, beside which a list is written anew that
            MMPretrain would read otherwise.
        train: The list of the training images.
        val: That of the validation images.
        names: Of the classes; None for their numbers.

    Raises:
        ValueError: If a line, a label or an image is wrong.
    """
    labels: dict[str, collections.Counter] = {}
    lists: dict[Path, str] = {}
    files = []
    for side, path in (('train', train), ('val', val)):
        images = read_list(path, root)
        if not images:
            raise ValueError(f'{str(path)!r} lists no images.')
        labels[side] = collections.Counter(label for _, label in images)
        refuse_unreadable(root / image for image, _ in images)
        files.append(path.resolve())
        if not read_as_it_is(path, images):
            files[-1] = out.with_name(f'{out.stem}_{side}.txt')
            lists[files[-1]] = list_text(images)
    count = max(max(c) for c in labels.values()) + 1
    if names is not None and len(names) < count:
        raise ValueError(f'{len(names)} classes are named, but labels go up '
                         f'to {count - 1}: name all, in order.')
    names = names or [str(i) for i in range(count)]
    missing = [names[i] for i in range(len(names)) if not labels['train'][i]]
    if missing:
        raise ValueError(f'{shorten(missing)} have no image in {str(train)!r}:'
                         ' labels count from 0, without gaps.')
    _refuse_one_class(names, train)
    parts = [dict(type='CustomDataset', data_root=str(root),
                  ann_file=str(path), data_prefix='', classes=names)
             for path in files]
    return Data(names, len(names), *parts,
                size=sum(labels['train'].values()), lists=lists)


def known_data(name: str, root: Path) -> Data:
    """A dataset that MMPretrain has a class for."""
    kind, count, val, channels, load = KNOWN[name]
    if load and not root.is_dir():
        raise ValueError(f'{str(root)!r} is not a folder: {kind} is read '
                         'from its train/ and val/.')
    parts = [dict(type=kind, data_root=str(root), split=split)
             for split in ('train', val)]
    return Data([], count, *parts, in_channels=channels, load=load,
                rgb=kind.startswith('CIFAR'))
