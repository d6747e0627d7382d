"""Pictures of explained images, and a folder of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..files import written_whole
from .explaining import Explanation

#: Images of a contact sheet, and how its name begins.
OF_SHEET, SHEET = 24, 'contact_sheet'


class Gallery:
    """Writes pictures as they come, each whole or not there.

    ``<out>/<name of the image>.png``, and ``<out>/contact_sheet.png``, with a
    number where there are several.

    Args:
        out: The folder; made with the first picture.
        names: Of all images, relative to their folder, with ``/``.
    """

    def __init__(self, out: str | Path, names: Sequence[str]) -> None:
        self.out = Path(out)
        self.places = places(names)
        self._page: list[Explanation] = []
        self._sheets = 0

    def add(self, row: int, explanation: Explanation) -> Path:
        """Draw an image.

        Args:
            row: Which of the names is its.
            explanation: Of it.

        Returns:
            The file.
        """
        path = self.out / self.places[row]
        _save(picture(explanation), path)
        if len(self.places) > 1:
            self._page.append(explanation)
            if len(self._page) == OF_SHEET:
                self.finish()
        return path

    def finish(self) -> None:
        """Write the last contact sheet."""
        if not self._page:
            return
        self._sheets += 1
        count = -(-len(self.places) // OF_SHEET)
        number = f'_{self._sheets:0{len(str(count))}}' if count > 1 else ''
        _save(sheet(self._page), self.out / f'{SHEET}{number}.png')
        self._page = []


def picture(explanation: Explanation) -> Any:
    """Draw an explanation: a matplotlib ``Figure``."""
    from .drawing import draw_maps
    return draw_maps(explanation.image, explanation.maps, explanation.titles,
                     explanation.location, '   '.join((
                         explanation.name, *explanation.verdict.split('\n'))),
                     explanation.note)


def sheet(explanations: Sequence[Explanation], heading: str = '') -> Any:
    """Draw many images, each with the map of its likeliest class.

    On one scale, four in a row: a matplotlib ``Figure``.
    """
    from .drawing import Panel, draw_panels
    panels = []
    for each in explanations:
        panels += [
            Panel(each.image, each.name, None, each.location),
            Panel(each.image, each.verdict, each.predicted, each.location,
                  each.right)]
    notes = dict.fromkeys(each.note for each in explanations)
    return draw_panels(panels, min(len(panels), 8), heading,
                       '; '.join(filter(None, notes)))


def check_folder(out: str | Path, images: Sequence[str],
                 force: bool = False) -> None:
    """Refuse a place for pictures that something else has.

    Args:
        out: The folder.
        images: Paths of the images.
        force: Whether it may hold files; those of the same names go.

    Raises:
        FileExistsError: If it holds files, or is one.
        ValueError: If the images are in it.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f'out={str(out)!r} is a file: name a folder.')
    if out.is_dir() and any(out.iterdir()) and not force:
        raise FileExistsError(
            f'out={str(out)!r} holds files: name another folder, or write '
            'over what is there with force=True.')
    inside = out.resolve()
    if any(inside in Path(image).resolve().parents for image in images):
        raise ValueError(f'out={str(out)!r} is where the images are: name '
                         'another folder.')


def places(names: Sequence[str]) -> list[str]:
    """Where the pictures of images lie below a folder: each its own place.

    Named as the images if that is enough to tell them apart, with their
    suffixes if not, in folders of their numbers if that is not enough.
    """
    parts = [[part.replace(':', '_') for part in name.split('/')
              if part not in ('', '.', '..')] or ['image'] for name in names]

    def forms() -> Iterator[list[str]]:
        yield [Path(*each).with_suffix('.png').as_posix() for each in parts]
        yield ['/'.join(each) + '.png' for each in parts]
        yield [f'{i}/{"/".join(each)}.png' for i, each in enumerate(parts)]

    for found in forms():
        folded = {each.casefold() for each in found}
        if len(folded) == len(found) and not any(
                each.startswith(SHEET) for each in folded):
            break
    return found


def _save(figure: Any, path: Path) -> None:
    from .drawing import save
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        save(figure, temporary)
