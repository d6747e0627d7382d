"""Lists of images and labels: as people write them, and for MMPretrain."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.fileio import list_from_file

from ..files import read_text
from ..messages import refuse_undecodable

_MARK = '\ufeff'


def read_list(path: Path, root: Path) -> list[tuple[str, int]]:
    """Images and labels of a list of lines ``image label``.

    Spaces around a path, and backslashes, are part of it where a file has
    that name; else they are what an editor or Windows has made of it.

    Args:
        path: The list.
        root: What its images are relative to.

    Raises:
        ValueError: If it cannot be decoded, or a line is another one.
    """
    found = []
    for number, line in enumerate(read_text(path).split('\n'), 1):
        if not line.strip():
            continue
        image, _, label = line.rstrip().rpartition(' ')
        plain = image.strip().replace('\\', '/')
        if not plain or not label.isdigit():
            raise ValueError(
                f'{str(path)!r}, line {number}: {line[:80]!r} is not '
                "'path/of/image.jpg label' with a label from 0 on.")
        if image != plain and not (root / image).is_file():
            image = plain
        found.append((image, int(label)))
    return found


def read_names(path: str | Path,
               folders: Sequence[str]) -> tuple[str, list[str]]:
    """Images of a list of lines ``image`` or ``image label``.

    Of a line, what names a file is taken: the line as it is, or without what
    an editor, Windows or a label has added to it.

    Args:
        path: The list.
        folders: What its images may be relative to: the first folder that
            has one of them is it, else the first one.

    Returns:
        The folder, and the names.

    Raises:
        ValueError: If the list cannot be decoded.
    """
    lines = [line.removesuffix('\r')
             for line in read_text(path).split('\n') if line.strip()]

    def found(line: str, folder: str) -> str | None:
        return next((name for name in _readings(line)
                     if os.path.isfile(os.path.join(folder, name))), None)

    root = next((folder for folder in folders
                 if any(found(line, folder) for line in lines)), folders[0])
    return root, [found(line, root) or [*_readings(line)][-1]
                  for line in lines]


def _readings(line: str) -> Iterator[str]:
    """What image a line may mean, the likeliest first."""
    image, _, label = line.rstrip().rpartition(' ')
    for name in (line, image) if image and label.isdigit() else (line, ):
        yield name
        yield name.strip().replace('\\', '/')


def list_text(images: list[tuple[str, int]]) -> str:
    """The text of a list, for ``CustomDataset``.

    It strips lines: a path that begins with a space, or with what may be
    taken for a byte order mark, gets a ``./`` ahead.

    Raises:
        ValueError: If the name of an image holds the end of a line, or is
            no text.
    """
    refuse_undecodable(image for image, _ in images)
    for image, _ in images:
        if '\n' in image or '\r' in image:
            raise ValueError(f'the name {image!r} holds the end of a line, '
                             'which no list can hold: rename it.')
    return ''.join(
        f'{"" if image == image.lstrip().lstrip(_MARK) else "./"}{image} '
        f'{label}\n' for image, label in images)


def read_as_it_is(path: Path, images: list[tuple[str, int]]) -> bool:
    """Whether ``CustomDataset`` reads a list as these images."""
    return [line.strip() for line in list_from_file(str(path))] == [
        f'{image} {label}' for image, label in images]
