"""Images in two places: what makes a training or its accuracy wrong."""

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..files import of_each
from ..messages import shorten
from .class_folders import files_below, tell_passed_over

#: Files of a split whose content is compared: evenly drawn ones, where there
#: are more. All of their sizes are asked for, and of those of one size a
#: piece is read, so that large data cost no more than these.
COMPARED = 10_000
_PIECE = 4096

#: Path and label of an image.
Image = tuple[str, Hashable]


def check_datasets(datasets: Mapping[str, Any]) -> None:
    """Check what is trained on, as built, by names and a few contents.

    Args:
        datasets: Split -> dataset; ``'train'`` is what the others are held
            against.

    Raises:
        ValueError: If classes differ, or as :func:`check_images` does.
    """
    images = {split: _images(dataset) for split, dataset in datasets.items()}
    check_same_classes(datasets)
    for split in [*images]:
        if split != 'train' and images[split] and {
                path for path, _ in images[split]} == {
                    path for path, _ in images['train']}:
            # so the config says: to see whether a network can learn at all
            warnings.warn(f"the images of {split!r} are those of 'train': its "
                          'accuracy says nothing of others.', stacklevel=2)
            del images[split]
    check_images(images)


def check_same_classes(datasets: Mapping[str, Any]) -> None:
    """Refuse splits whose labels mean other classes than in training.

    Args:
        datasets: Split -> dataset, ``'train'`` among them.

    Raises:
        ValueError: With the classes that differ.
    """
    for split, dataset in datasets.items():
        classes, others = (getattr(d, 'metainfo', {}).get('classes')
                           for d in (datasets['train'], dataset))
        if classes and others and list(classes) != list(others):
            differing = sorted(set(classes) ^ set(others))
            told = (f'{shorten(differing)} are in one of them alone'
                    if differing else 'they stand in another order')
            raise ValueError(
                f"the classes of 'train' and {split!r} differ ({told}), so "
                'that labels mean other classes: give both datasets the same '
                'classes=[...], with a list of images in place of a folder '
                'that lacks one.')


def check_folder(dataset: Any, split: str) -> None:
    """Check what a dataset that looks for images itself has found.

    Raises:
        ValueError: If hidden folders are among the classes, or hidden files
            among the images.
    """
    for part in getattr(dataset, 'datasets', [
            getattr(dataset, 'dataset', None)]):  # of a wrapper
        if part is not None:
            check_folder(part, split)
    if not getattr(dataset, 'folder_to_idx', None):
        return
    where = os.path.normpath(dataset.img_prefix)
    if not os.path.isdir(where):  # on a server
        return
    found = [os.path.relpath(path, where) for path, _ in _images(dataset)]
    hidden = [name for name in [*dataset.folder_to_idx, *found]
              if name[0] == '.' or f'{os.sep}.' in name]
    if hidden:
        raise ValueError(f'{split!r}: {shorten(hidden)} under {where!r} '
                         'are hidden, but would count: remove them, or '
                         'describe the data by a list.')
    files = list(files_below(where))
    others = [name for name in files if not dataset.is_valid_file(name)]
    tell_passed_over(others, len(files) - len(others), where)
    if len(found) > len(files) - len(others):
        warnings.warn(
            f'{split!r}: {len(found)} images under {where!r} are '
            f'{len(files) - len(others)} files, some of which links reach '
            'more than once: describe the data by a list.', stacklevel=2)


def _images(dataset: Any) -> list[Image]:
    """Images of a dataset; none where they are no files with labels."""
    found: list[Image] = []
    for i in range(len(dataset)):
        try:
            info = dataset.get_data_info(i)
            label = info['gt_label']
            found.append((info['img_path'], tuple(label) if
                          hasattr(label, '__iter__') else label))
        except (AttributeError, KeyError, TypeError):
            return []
    return found


def check_images(splits: Mapping[str, Sequence[Image]],
                 compared: int | None = COMPARED) -> None:
    """Refuse contradictions between splits, and warn of images in two.

    Args:
        splits: Split -> path and label of each image; ``'train'`` is what
            the others are held against.
        compared: Files of a split whose content is compared; None for all.

    Raises:
        ValueError: If one file has two labels, or all images of a split are
            in ``'train'``, too.
    """
    label_of: dict[str, Hashable] = {}
    twice = {path for images in splits.values() for path, label in images
             if label_of.setdefault(path, label) != label}
    files = [(split, path, label) for split, images in splits.items()
             for path, label in _evenly(images, compared)]
    groups = copies(files)
    relabelled = {}
    for group in groups:
        first: dict[Hashable, Image] = {}
        for _, path, label in group:
            other, known = first.setdefault(_identity(path), (path, label))
            if known != label:
                twice.add(f'{other} = {path}')
        relabelled.update((a, b) for (_, a, x), (_, b, y)
                          in pairwise(group) if x != y)
    if twice:
        raise ValueError(f'{len(twice)} images have two labels: '
                         f'{shorten(sorted(twice))}: leave each one of them.')
    known = {path for path, _ in splits.get('train', ())}
    asked: dict[str, set[str]] = defaultdict(set)
    for split, path, _ in files:
        asked[split].add(path)
    for split in [split for split in splits if split != 'train']:
        pairs = {path: path for path, _ in splits[split] if path in known}
        matched = set(pairs)
        different = len(pairs)
        for group in groups:
            trained = [path for s, path, _ in group if s == 'train']
            others = [path for s, path, _ in group if s == split]
            if trained and others:
                pairs.update(dict.fromkeys(others, trained[0]))
                matched.update(trained)
                different += len({label for _, _, label in group}) == 1
        # a few pictures many times, as people try things out with: no copy
        if (2 * different > len(asked[split]) and asked[split] <= set(pairs)
                and asked['train'] <= matched):
            raise ValueError(
                f"{split!r} is a copy of 'train' ({_told(pairs)}), so that "
                'its accuracy says nothing of other images: give it images '
                'of its own.')
        if pairs:
            warnings.warn(
                f"{len(pairs)} of {len(asked[split])} images of {split!r} "
                f"are in 'train', too: {_told(pairs)}; its accuracy is too "
                'good.', stacklevel=2)
    if relabelled:
        warnings.warn(f'{len(relabelled)} images have a copy of another '
                      f'label: {_told(relabelled)}.', stacklevel=2)


def _told(pairs: dict[str, str]) -> str:
    return shorten(a if a == b else f'{a} = {b}' for a, b in pairs.items())


def _evenly(images: Sequence[Image], count: int | None) -> Sequence[Image]:
    if count is None or len(images) <= count:
        return images
    return [images[i * len(images) // count] for i in range(count)]


def copies(files: list[tuple]) -> list[list[tuple]]:
    """Groups of files of one content, in several splits or of several labels.

    By size, then by a piece of the middle, then by all that is in them. A
    path that is listed twice counts as it is listed first.
    """
    by_path: dict[str, tuple] = {}
    for file in files:
        by_path.setdefault(file[1], file)
    groups = [list(by_path.values())]
    for key in (os.path.getsize, _piece, _content):
        left = [(i, file) for i, group in enumerate(groups) for file in group]
        parts = defaultdict(list)
        for (i, file), value in zip(left, of_each(
                key, [path for _, (_, path, _) in left]), strict=True):
            if value is not None:  # not there: for those who read it
                parts[i, value].append(file)
        groups = [part for part in parts.values()
                  if len({(split, label) for split, _, label in part}) > 1]
    return groups


def _identity(path: str) -> Hashable:
    found = os.stat(path)
    # a file of several names; some network drives number no files
    return (found.st_dev, found.st_ino) if found.st_ino else path


def _piece(path: str) -> bytes:
    with open(path, 'rb') as file:
        file.seek(max(os.path.getsize(path) // 2 - _PIECE // 2, 0))
        return file.read(_PIECE)


def _content(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()
