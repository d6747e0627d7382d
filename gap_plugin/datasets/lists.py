"""Lists of images and labels: as people write them, and for MMPretrain."""

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
