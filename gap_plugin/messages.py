"""What the lines of messages are made of."""

from collections.abc import Iterable

#: Names that a message shows of many.
SHOWN = 5


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shorten(names: Iterable[object]) -> str:
    """Many names as a few: the first ones, quoted, and how many there are."""
    names = [str(name) for name in names]
    text = ', '.join(map(repr, names[:SHOWN]))
    return text if len(names) <= SHOWN else f'{text}, ... ({len(names)})'
