"""Features on disk: plain ``.npy`` files and a JSON file of what made them.

A store is complete or it is not there. It is written in a folder of its own
beside it, ``<name>.partial``, which is renamed when the last row is in, and
from which a killed run goes on.
"""

import hashlib
import json
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ..files import TEMPORARY, remove_whole, written_whole
from ..locks import alone
from ..messages import first_line
from .engines import is_of

ARRAYS = ('features.npy', 'labels.npy', 'sample_ids.npy')
#: What images without labels have no file of.
OPTIONAL = 'labels.npy'
DESCRIPTION = 'store.json'
KEPT = 'kept.{}'  # an array without rows that are dropped
_CHUNK = 1 << 24  # bytes read at a time


class FeatureStore:
    """Features of one split, opened as memory maps.

    Args:
        folder: Where ``features.npy``, ``labels.npy``, ``sample_ids.npy``
            and ``store.json`` are.

    Attributes:
        features (np.ndarray): ``(N, C)``, float32 or float16, in the order
            of the dataset.
        labels (np.ndarray): ``(N, )`` class indices or ``(N, K)`` scores;
            None if the images have none.
        sample_ids (np.ndarray): ``(N, )`` text, the path of each image.
        description (dict): ``fingerprint``, and what there is to know of
            the files.

    Raises:
        ValueError: If there is no store, or a file of it is truncated, has
            been edited, or holds what no store does.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).is_file():
            raise ValueError(
                f'{str(folder)!r} is no feature store: it has no '
                f'{DESCRIPTION}; extract features first.')
        try:
            self.description = read_json(self.folder / DESCRIPTION)
            files = self.description['files']
            self.fingerprint = self.description['fingerprint']
            for name in ARRAYS:
                if name in files or name != OPTIONAL:
                    self._check(name, files[name])
            self.fingerprint.items()  # a dict
        except KeyError as error:
            raise ValueError(self._damaged(
                DESCRIPTION, f'it lacks {error}')) from None
        except (AttributeError, json.JSONDecodeError, TypeError,
                UnicodeDecodeError) as error:
            raise ValueError(self._damaged(DESCRIPTION, error)) from None
        self.features, self.labels, self.sample_ids = (
            self._open(name) if name in files else None for name in ARRAYS)
        self._check_rows()

    def _check(self, name: str, known: dict[str, Any]) -> None:
        """Refuse a file that is not as it was written.

        Only one that has been touched is read: copies, and edits.
        """
        path = self.folder / name
        if not path.is_file():
            raise ValueError(self._damaged(name, 'it is missing'))
        found = path.stat()
        if found.st_size != known['bytes']:
            raise ValueError(self._damaged(
                name, f'{found.st_size} bytes in place of {known["bytes"]}'))
        if (found.st_mtime_ns != known['mtime_ns']
                and digest(path) != known['blake2b']):
            raise ValueError(self._damaged(name, 'its content has changed'))

    def _open(self, name: str) -> np.ndarray:
        try:
            return np.load(self.folder / name, mmap_mode='r')
        except (EOFError, ValueError) as error:
            raise ValueError(self._damaged(name, first_line(error))) from None

    def _check_rows(self) -> None:
        """Refuse arrays that do not belong together, and no numbers."""
        features = self.features
        if features.ndim != 2 or features.dtype.kind != 'f':
            raise ValueError(self._damaged(
                'features.npy', f'{features.dtype} of shape {features.shape} '
                'in place of rows of numbers'))
        for name, values in zip(ARRAYS[1:], (self.labels, self.sample_ids),
                                strict=True):
            if values is not None and len(values) != len(features):
                raise ValueError(self._damaged(
                    name, f'{len(values)} in place of {len(features)}'))
        step = max(_CHUNK // max(features[:1].nbytes, 1), 1)
        for start in range(0, len(features), step):
            rows = features[start:start + step]
            with np.errstate(invalid='ignore'):  # of infinite ones
                finite = np.isfinite(rows.sum(dtype=np.float64))
            if not finite:
                row = start + int(np.isfinite(rows).all(1).argmin())
                raise ValueError(self._damaged(
                    'features.npy', 'NaN or infinite features of '
                    f'{str(self.sample_ids[row])!r}'))

    def _damaged(self, name: str, why: Any) -> str:
        return (f'{str(self.folder / name)!r} is damaged ({why}): extract '
                'again with force=True.')

    def __len__(self) -> int:
        return len(self.features)

    @property
    def images(self) -> str | None:
        """What stands for the images, their labels and their order."""
        return self.fingerprint.get('images', self.fingerprint.get('data'))

    def check(self, fingerprint: dict[str, Any]) -> None:
        """Refuse a store that something else has made.

        What does not change features is told by a warning.

        Args:
            fingerprint: Of what is to be used now.

        Raises:
            ValueError: If they differ; with the fields.
        """
        others, told = compare(self.fingerprint, fingerprint)
        if others:
            raise ValueError(
                f'{str(self.folder)!r} was made otherwise: {others}; '
                'extract again with force=True, or into another folder.')
        if told:
            warnings.warn(f'{str(self.folder)!r} is used as it is: what '
                          f'differs changes no features ({told}) beyond '
                          'their rounding.', stacklevel=4)


def remove(folder: str | Path,
           unless: dict[str, Any] | None = None) -> None:
    """Remove a store, and what there is of a half-written one.

    Args:
        folder: Of the store.
        unless: Fingerprint of what is left where it is. Its engine is one
            that may be asked for; a half-written store is gone on with by
            any.

    Raises:
        ValueError: If the folder holds something else, or another run
            writes it.
    """
    folder = Path(folder)
    for path, made_by in ((folder, DESCRIPTION),
                          (folder.with_name(f'{folder.name}.partial'),
                           'plan.json')):
        if not path.exists() or unless is not None and _is_made_by(
                path / made_by, unless):
            continue
        other = sorted({TEMPORARY.sub('', p.name) for p in path.iterdir()} - {
            *ARRAYS, *map(KEPT.format, ARRAYS), DESCRIPTION, 'done',
            'plan.json'})
        if other:
            raise ValueError(f'{str(path)!r} holds {other[0]!r}, which is of '
                             'no feature store: choose another folder.')
        with written_alone(folder):
            remove_whole(path)


def written_alone(folder: Path) -> AbstractContextManager[None]:
    """Keep other runs off a store while it is written."""
    return alone(folder.with_name(f'.{folder.name}.lock'), folder)


def _is_made_by(path: Path, fingerprint: dict) -> bool:
    """Whether a whole store, or a half-written one, has a fingerprint."""
    try:
        made = dict(FeatureStore(path.parent).fingerprint
                    if path.name == DESCRIPTION else read_json(path))
    except (OSError, ValueError):
        return False
    made.pop('engines', None)
    engine, asked = made.pop('engine', None), fingerprint.get('engine')
    return (not engine or not asked or is_of(engine, asked)) and made == {
        key: value for key, value in fingerprint.items() if key != 'engine'}


#: Fields of a fingerprint that say too much -> those that took their places,
#: where a store has them. Older stores go by the former ones.
_FORMER = {'backbone': 'network', 'pipeline': 'transforms', 'data': 'images'}
#: Fields that change no features, or their rounding alone.
_TOLD = ('root', 'batch_size', 'engine')
#: Libraries whose patch releases change no features.
_PATCHED = ('torch', 'mmpretrain', 'mmengine', 'mmcv-lite',
            'onedl-mmpretrain', 'onedl-mmengine', 'onedl-mmcv')


def compare(made: dict, now: dict) -> tuple[str, str]:
    """Fields in which two fingerprints of stores differ.

    Returns:
        Those that make other features, and those that are only told.
    """
    told = {*_TOLD}
    if _released(made) == _released(now):
        told.add('versions')
    left_out = {former for former, field in _FORMER.items() if field in made}
    left_out |= {'root', *_FORMER.values()} - set(made)
    if 'backbone' in made and made['backbone'] == now.get('backbone'):
        left_out.add('network')  # which is a part of it
    sides = [{key: value for key, value in side.items()
              if key not in left_out} for side in (made, now)]
    others, few = ([{key: value for key, value in side.items()
                     if (key in told) is minor} for side in sides]
                   for minor in (False, True))
    return differing(*others), differing(*few)


def _released(fingerprint: dict) -> dict | None:
    """Versions without the patch level, where that changes no features."""
    versions = fingerprint.get('versions')
    return versions and {
        name: '.'.join(version.split('.')[:2]) if name in _PATCHED else version
        for name, version in versions.items()}


def differing(made: dict, now: dict) -> str:
    """Fields in which two fingerprints differ, with both values."""
    keys = [k for k in {**made, **now} if made.get(k) != now.get(k)]
    return ', '.join(f'{k} {str(made.get(k))[:80]} against '
                     f'{str(now.get(k))[:80]} now' for k in keys)


def digest(path: Path) -> str:
    """What stands for the content of a file."""
    found = hashlib.blake2b(digest_size=16)
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n',
                             encoding='utf-8')


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding='utf-8'))
