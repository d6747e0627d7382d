"""What the lines of messages are made of."""

from collections.abc import Iterable

#: Names that a message shows of many.
SHOWN = 5


def first_line(error: BaseException) -> str:
    """The line of an error's text that tells most, or its type.

    It is the first one, or the last one of an error that a dataloader's
    worker hands on with its traceback.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[-1 if lines[0].startswith('Caught ') else 0].strip()


def refuse_undecodable(names: Iterable[object]) -> None:
    """Refuse names whose bytes are no text: no file could hold them.

    Raises:
        ValueError: With the first one.
    """
    for name in map(str, names):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f'the name {name!r} is not UTF-8, and cannot be '
                             'written: rename it.') from None


def shorten(names: Iterable[object]) -> str:
    """Many names as a few: the first ones, quoted, and how many there are."""
    names = [str(name) for name in names]
    text = ', '.join(map(repr, names[:SHOWN]))
    return text if len(names) <= SHOWN else f'{text}, ... ({len(names)})'
