"""Files of weights: read without the code that they carry, or refused.

Every way to a file leads through here: ``checkpoint_path`` of a backbone and
all loaders of MMEngine.
"""

import math
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file

_FORCE, _FORCE_NO = (f'TORCH_FORCE_{no}WEIGHTS_ONLY_LOAD'
                     for no in ('', 'NO_'))
_CHUNK = 1 << 24


def read_checkpoint_file(file: str | Path | BinaryIO,
                         map_location: Any = 'cpu',
                         told: str | None = None) -> Any:
    """Read what ``torch.save``, safetensors or numpy have written.

    Nothing is unpickled but tensors and the classes that are on torch's
    allow-list, but for users who set ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``
    themselves: they are told.

    Args:
        file: Its path, or its open content.
        map_location: Of ``torch.load``.
        told: What errors call it; by default a checkpoint and its path.

    Returns:
        What it holds; of an ``.npz``, name -> tensor.

    Raises:
        ValueError: If it carries code, is damaged or of another format, in
            one line.
    """
    path = file if isinstance(file, (str, Path)) else None
    told = told or f'checkpoint {str(path)!r}'
    suffix = Path(path or '').suffix.lower()
    if path and not os.path.getsize(path):
        raise ValueError(f'{told} is empty: give a file that has been '
                         'written to its end.')
    full = _unpickles_in_full(told)
    if not full and suffix not in ('.safetensors', '.npz'):
        _refuse_code(file, told)
    try:
        if suffix == '.npz':
            return _read_npz(path)
        if suffix == '.safetensors':
            named = isinstance(map_location, (str, torch.device))
            return load_file(path, str(map_location) if named else 'cpu')
        return torch.serialization.load(file, map_location,
                                        weights_only=not full)
    except Exception as error:  # noqa: BLE001, a crafted file raises any
        text = _reason(error)
        if isinstance(error, _Pickled) or (
                isinstance(error, pickle.UnpicklingError)
                and 'Unsupported operand' not in str(error)):
            raise ValueError(
                f'{told} carries pickled code, which is not run ({text}): '
                'save its weights alone, as a state dict or as safetensors, '
                'or allow classes that you trust with '
                'gap_plugin.allow_classes(NAME).') from None
        raise ValueError(
            f'{told} cannot be read ({_text_of(path) or text}): it is '
            'truncated, or not what its suffix says; give a whole file of '
            'torch.save, of safetensors, or an .npz of numpy.') from None


class _Pickled(ValueError):
    """Objects in a file whose format has a place for numbers alone."""


def _unpickles_in_full(told: str) -> bool:
    """Whether the user's own environment asks for code to be run."""
    force, force_no = (
        os.environ.get(name, '0').lower() in ('1', 'y', 'yes', 'true')
        for name in (_FORCE, _FORCE_NO))
    if force and force_no:
        raise ValueError(f'{_FORCE} and {_FORCE_NO} are both set in the '
                         'environment: unset one of them.')
    if force_no:
        warnings.warn(f'{_FORCE_NO} is set: {told} is unpickled in full, and '
                      'code that it carries is run.', stacklevel=3)
    return force_no


def _refuse_code(file: str | Path | BinaryIO, told: str) -> None:
    """Refuse formats that cannot be read without the code in them."""
    found = None
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        if any(name.endswith('/constants.pkl')
               for name in archive.namelist()):
            found = 'a TorchScript archive'
    if not isinstance(file, (str, Path)):
        file.seek(0)
    else:  # torch's oldest format, as torch looks for it
        with suppress(tarfile.TarError), tarfile.open(file, 'r:') as archive:
            found = 'a tar archive' if archive.next() else found
    if found:
        raise ValueError(
            f'{told} is {found}, which torch reads with the code in it, and '
            'that is not run: save its weights alone, by '
            'torch.save(model.state_dict(), PATH) or as safetensors.')


def _read_npz(path: str | Path) -> dict[str, torch.Tensor]:
    """The arrays of a file that is as long as its headers say."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = (np.lib.format.read_array_header_1_0 if version ==
                        (1, 0) else np.lib.format.read_array_header_2_0)
                shape, _, dtype = read(file)
                if dtype.hasobject:
                    raise _Pickled(f'{member.filename} holds objects')
                # ahead of the memory for it
                left = math.prod(shape) * dtype.itemsize
                if min(shape, default=0) < 0 or left > member.file_size:
                    raise ValueError(f'{member.filename} is shorter than its '
                                     'header says')
                while chunk := file.read(_CHUNK):
                    left -= len(chunk)
                if left:
                    raise ValueError(f'{member.filename} is not as long as '
                                     'its header says')
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _reason(error: BaseException) -> str:
    """The part of an error's text that tells what is wrong, in one line."""
    text = str(error)
    asked = re.search(r'GLOBAL (\S+)', text)
    if asked:
        text = f'it asks for {asked[1]}'
    if 'Unsupported operand' in text:
        return 'it is no pickle of protocol 2, which torch.save writes'
    # torch goes on to advise running the code
    text = text.rpartition('WeightsUnpickler error: ')[2]
    lines = [line.strip() for line in text.splitlines()
             if line.strip() and 'weights_only' not in line]
    line = lines[0] if lines else type(error).__name__
    return ''.join(c if c.isprintable() else '?' for c in line[:160])


def _text_of(path: str | Path | None) -> str | None:
    """What a file begins with, if that is text."""
    if path is None:
        return None
    with open(path, 'rb') as file:
        begin = file.read(40)
    text = begin.decode('ascii', 'replace').strip().partition('\n')[0]
    return f'it begins with the text {text!r}' if (
        begin.isascii() and text.isprintable()) else None
