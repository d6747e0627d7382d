"""Where the configs and the tools lie that come with the package."""

from pathlib import Path

KINDS = ('configs', 'tools')


def shipped(kind: str) -> Path:
    """The folder of shipped configs or tools.

    In a wheel they lie in ``.mim`` inside the package, where MMPretrain's
    own lie and where ``mim`` looks; in a checkout beside the package.

    Args:
        kind: One of :data:`KINDS`.

    Raises:
        ValueError: If there is no such kind.
        FileNotFoundError: If the folder is not there.
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {KINDS}, got {kind!r}.')
    package = Path(__file__).resolve().parent
    places = [package / '.mim' / kind]
    if (package.parent / 'setup.py').is_file():  # a checkout
        places.append(package.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f'the {kind} of gap_plugin are not in '
        f'{" or ".join(map(str, places))}: install gap_plugin again.')
