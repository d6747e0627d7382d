"""Folders of classes: what of them is an image, a split, a class."""

import collections
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from ..messages import shorten
from .loading import unreadable

#: Names of folders that are splits, in small letters -> which one.
SPLIT_NAMES = {
    'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val',
    'validation': 'val', 'test': 'test', 'testing': 'test'
}


@cache
def suffixes() -> frozenset[str]:
    """Ends of the names of files that Pillow reads by itself."""
    Image.init()
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in ('EPS', 'MPEG') and not (
            isinstance(reader := Image.OPEN[kind][0], type)
            and issubclass(reader, ImageFile.StubImageFile)))


def files_below(folder: str | Path) -> Iterator[str]:
    """Files at any depth, in order, without what is hidden.

    Each folder and each file comes once, however many links lead to it, so
    that a link to a folder above ends.
    """
    seen: set[str] = set()
    pending = [str(folder)]
    while pending:
        base = pending.pop()
        real = os.path.realpath(base)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(base) as entries:
            there = sorted((entry for entry in entries
                            if not entry.name.startswith('.')),
                           key=lambda entry: entry.name)
        pending += [entry.path for entry in reversed(there)
                    if entry.is_dir()]
        for entry in there:
            if entry.is_dir():
                continue
            file = os.path.join(real, entry.name)
            if entry.is_symlink():
                file = os.path.realpath(file)
            if file not in seen:
                seen.add(file)
                yield entry.path


def tell_passed_over(others: Iterable[str], count: int, where: Any) -> None:
    """Warn of files that are no images, by the ends of their names.

    Args:
        others: Their names.
        count: Files that are.
        where: What they lie in.
    """
    ends = collections.Counter(
        os.path.splitext(name)[1].lower() or 'no suffix' for name in others)
    if ends:
        warnings.warn(
            f'{ends.total()} of {count + ends.total()} files under '
            f'{str(where)!r} are passed over: '
            + ', '.join(f'{end} {n}' for end, n in ends.most_common()),
            stacklevel=2)


def folders_of(root: Path) -> list[Path]:
    """Folders right below one that are not hidden."""
    return [path for path in sorted(root.iterdir())
            if path.is_dir() and not path.name.startswith('.')]


def images_by_class(folders: list[Path], where: Path,
                    read: bool) -> dict[str, list[Path]]:
    """Images of each class folder, at any depth.

    Args:
        folders: Those of the classes.
        where: What they lie in.
        read: Whether files that cannot be read are refused.

    Raises:
        ValueError: If there are none, a folder is no class, or a file cannot
            be read.
    """
    names = {folder.name for folder in folders}
    for folder in folders:
        _refuse_dataset(folder, names)
    found: dict[str, list[Path]] = {}
    others = [path.name for path in where.iterdir()
              if path.is_file() and path.suffix.lower() in suffixes()]
    for folder in folders:
        images = found[folder.name] = []
        for path in map(Path, files_below(folder)):
            if path.suffix.lower() in suffixes():
                images.append(path)
            else:
                others.append(path.name)
        images.sort()
    tell_passed_over(others, sum(map(len, found.values())), where)
    if not any(found.values()):
        raise ValueError(f'no images under {str(where)!r} in class folders: '
                         'put them into <class>/<image>.')
    if read:
        refuse_unreadable(p for paths in found.values() for p in paths)
    return found


def _refuse_dataset(folder: Path, classes: set[str]) -> None:
    """Refuse a class folder that holds splits, or all the classes again.

    Raises:
        ValueError: With the folder that is meant.
    """
    inside = [path for path in folder.iterdir()
              if not path.name.startswith('.')]
    names = {path.name for path in inside}
    if not names or not all(path.is_dir() for path in inside):
        return
    if all(name.lower() in SPLIT_NAMES for name in names):
        raise ValueError(
            f'{str(folder)!r} holds {shorten(sorted(names))} alone, and is a '
            f'dataset, no class: give data_root={str(folder)!r}.')
    if names <= classes - {folder.name} and folder.name.lower() in SPLIT_NAMES:
        raise ValueError(
            f'{str(folder)!r} holds {shorten(sorted(names))} alone, and is a '
            'split, no class: put train/ and val/ beside it, or move it away.')


def refuse_unreadable(paths: Iterable[Path]) -> None:
    """Refuse files that are no images.

    Raises:
        ValueError: With the first names.
    """
    bad = unreadable(paths)
    if bad:
        raise ValueError(f'{len(bad)} files cannot be read as images: '
                         f'{shorten(bad)}; remove or replace them.')


def split_folders(root: Path) -> dict[str, Path]:
    """Folders of the splits: train, val, and test if there is one.

    Returns:
        None at all where the folders are those of classes.

    Raises:
        ValueError: If there is only a part of them, or one twice.
    """
    found: dict[str, Path] = {}
    others = []
    for folder in folders_of(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            others.append(folder.name)
        elif split in found:
            raise ValueError(
                f'{str(root)!r} has {found[split].name}/ and {folder.name}/: '
                f'which one is {split!r}? Rename or move the other one.')
        else:
            found[split] = folder
    if not {'train', 'val'} & set(found):
        return {}
    if not {'train', 'val'} <= set(found):
        there = ' and '.join(f'{path.name}/' for path in found.values())
        raise ValueError(f'{str(root)!r} has {there} alone: give it '
                         'train/ and val/, or class folders only.')
    if others:
        warnings.warn(f'{shorten(others)} beside {found["train"].name}/ of '
                      f'{str(root)!r}: passed over, for no split is named so.',
                      stacklevel=3)
    return {split: found[split] for split in ('train', 'val', 'test')
            if split in found}
