"""What images there are, as a config states them; checked for training."""

import random
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..messages import shorten
from .checks import COMPARED, check_images
from .class_folders import (
    folders_of,
    images_by_class,
    refuse_unreadable,
    split_folders,
)
from .lists import list_text, read_as_it_is, read_list

#: Datasets of MMPretrain -> class, number of classes, split for validation,
#: channels, and whether the images are files that have to be read.
KNOWN = {
    'cifar10': ('CIFAR10', 10, 'test', 3, False),
    'cifar100': ('CIFAR100', 100, 'test', 3, False),
    'mnist': ('MNIST', 10, 'test', 1, False),
    'fashion-mnist': ('FashionMNIST', 10, 'test', 1, False),
    'imagenet': ('ImageNet', 1000, 'val', 3, True),
}


#: Images of a split: path below the root, and label.
Rows = list[tuple[str, int]]


@dataclass
class Data:
    """A dataset, as a config states it.

    Attributes:
        classes: Names, empty where the dataset class knows them.
        count: Number of classes.
        train: Arguments of the dataset for training.
        val: And for validation.
        test: And for a test; None for the validation images.
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
    test: dict[str, Any] | None = None
    size: int | None = None
    in_channels: int = 3
    load: bool = True
    rgb: bool = False
    lists: dict[Path, str] = field(default_factory=dict)


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
    folders = split_folders(root)
    rows: dict[str, Rows] = {}
    if folders:
        sides = {side: images_by_class(folders_of(folder), folder, read)
                 for side, folder in folders.items()}
        names = sorted(sides['train'])
        _refuse_empty(sides['train'], folders['train'])
        for side, found in sides.items():
            unknown = [n for n in found if found[n] and n not in names]
            if unknown:
                raise ValueError(f'{shorten(unknown)} of {side!r} under '
                                 f"{str(root)!r} have no images in 'train'.")
            rows[side] = [(path.relative_to(root).as_posix(), label)
                          for label, name in enumerate(names)
                          for path in found.get(name, ())]
    else:
        found = images_by_class(folders_of(root), root, read)
        _refuse_empty(found, root)
        names = sorted(found)
        rows = _divided(root, found, share, seed)
    _check_rows(rows, names, root, None if read else COMPARED)
    # lists, for the dataset of the host walks folders by rules of its own:
    # into hidden ones, round links, and with a label for each of val/
    lists = {
        out.with_name(f'{out.stem}_{side}.txt'): list_text(lines)
        for side, lines in rows.items()
    }
    parts = {side: dict(type='CustomDataset', data_root=str(root),
                        ann_file=str(path), data_prefix='', classes=names)
             for side, path in zip(rows, lists, strict=True)}
    return Data(names, len(names), **parts, size=len(rows['train']),
                lists=lists)


def _refuse_empty(found: dict[str, list[Path]], where: Path) -> None:
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise ValueError(f'no images in {shorten(empty)} under '
                         f'{str(where)!r}: fill or remove the folders.')


def _divided(root: Path, found: dict[str, list[Path]], share: float,
             seed: int) -> dict[str, Rows]:
    """Images of each class, drawn for training and for validation."""
    few = [name for name, paths in found.items() if len(paths) < 2]
    if few:
        raise ValueError(f'{shorten(few)} under {str(root)!r} have one image '
                         'each, which cannot be split: add images.')
    rng = random.Random(seed)
    rows: dict[str, Rows] = dict(train=[], val=[])
    for label, name in enumerate(sorted(found)):
        paths = [p.relative_to(root).as_posix() for p in found[name]]
        rng.shuffle(paths)
        held = min(max(round(len(paths) * share), 1), len(paths) - 1)
        rows['val'] += [(path, label) for path in sorted(paths[:held])]
        rows['train'] += [(path, label) for path in sorted(paths[held:])]
    return rows


def _check_rows(rows: dict[str, Rows], names: list[str], root: Path,
                compared: int | None = None) -> None:
    """Refuse what cannot be trained on, warn of what may deceive."""
    if len(names) < 2:
        raise ValueError(f'{str(root)!r} has the class {names[0]!r} alone: '
                         'a classifier needs two at least.')
    for side, lines in rows.items():
        there = {label for _, label in lines}
        lacking = [n for label, n in enumerate(names) if label not in there]
        if lacking:
            warnings.warn(f'{side!r} has no images of {shorten(lacking)}: '
                          'its accuracy says nothing of them.', stacklevel=3)
    check_images({side: [(str(root / path), label) for path, label in lines]
                  for side, lines in rows.items()}, compared)


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
    rows: dict[str, Rows] = {}
    lists: dict[Path, str] = {}
    files = []
    for side, path in (('train', train), ('val', val)):
        rows[side] = read_list(path, root)
        if not rows[side]:
            raise ValueError(f'{str(path)!r} lists no images.')
        refuse_unreadable(root / image for image, _ in rows[side])
        files.append(path.resolve())
        if not read_as_it_is(path, rows[side]):
            files[-1] = out.with_name(f'{out.stem}_{side}.txt')
            lists[files[-1]] = list_text(rows[side])
    trained, tested = ({label for _, label in lines}
                       for lines in rows.values())
    count = max(trained | tested) + 1
    if names is not None and len(names) < count:
        raise ValueError(f'{len(names)} classes are named, but labels go up '
                         f'to {count - 1}: name all, in order.')
    names = names or [str(i) for i in range(count)]
    missing = [names[i] for i in range(len(names)) if i not in trained]
    if missing:
        raise ValueError(f'{shorten(missing)} have no image in {str(train)!r}:'
                         ' labels count from 0, without gaps.')
    _check_rows(rows, names, root)
    parts = [dict(type='CustomDataset', data_root=str(root),
                  ann_file=str(path), data_prefix='', classes=names)
             for path in files]
    return Data(names, len(names), *parts, size=len(rows['train']),
                lists=lists)


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
