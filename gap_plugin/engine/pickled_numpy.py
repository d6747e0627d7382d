"""Stand-ins for what pickled numbers and arrays of numpy ask for by name.

torch's unpickler calls what it knows under a name with what a file says, and
gives the file's state to the result. numpy's own parts trust that state: a
dtype of objects makes pointers of a file's bytes, and an array that is filled
twice leaves tensors of its former memory behind. These take plain numbers and
text, of the size that the file says, once.
"""

import math
import re
from pickle import UnpicklingError
from typing import Any

import numpy as np

_PLAIN = re.compile(r'[<>=|]?(b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|'
                    r'[SU]\d{1,9})')


class PickledDtype:
    """``numpy.dtype`` in a pickle: that of plain numbers or of text."""

    def __new__(cls, code: str, align: bool = False,
                copy: bool = False) -> 'PickledDtype':
        """As numpy's own, whose other two arguments change nothing here."""
        made = super().__new__(cls)
        made.dtype = _plain(code)
        return made

    def __setstate__(self, state: tuple) -> None:
        _, order, *structure = state[:5]
        if structure != [None] * 3 or order not in tuple('<>=|'):
            raise UnpicklingError('it asks for a dtype that is built of '
                                  'others')
        self.dtype = self.dtype.newbyteorder(order)

    def __reduce__(self) -> tuple:
        return self.dtype.__reduce__()


class PickledArray(np.ndarray):
    """``numpy.ndarray`` in a pickle, which is filled once."""

    _filled = False

    def __new__(cls) -> 'PickledArray':
        """An empty one, whatever a file would like."""
        return super().__new__(cls, 0, np.int8)

    def __setstate__(self, state: tuple) -> None:
        if self._filled:
            raise UnpicklingError('it asks for an array to be filled twice')
        _, shape, dtype, fortran, raw = state
        values = _values(dtype, shape, raw)
        super().__setstate__((1, values.shape, values.dtype, bool(fortran),
                              raw))
        self._filled = True

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return np.asarray(self).__reduce_ex__(protocol)  # a plain one again


def reconstruct(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """``numpy._core.multiarray._reconstruct``: an array to be filled."""
    if kind not in (PickledArray, np.ndarray):
        raise UnpicklingError(f'it asks for an array of the class {kind!r}')
    return PickledArray()


def scalar(dtype: Any, raw: bytes) -> np.generic:
    """``numpy._core.multiarray.scalar``: a number or text."""
    return _values(dtype, (), raw)[()]


def no_bytes() -> bytes:
    """``bytes`` in a pickle, which stands for none of them alone."""
    return b''


def _plain(code: Any) -> np.dtype:
    if not isinstance(code, str) or not _PLAIN.fullmatch(code):
        raise UnpicklingError(f'it asks for the dtype {str(code)[:40]!r}, '
                              'which is not one of plain numbers or text')
    return np.dtype(code)


def _values(dtype: Any, shape: tuple, raw: bytes) -> np.ndarray:
    """Bytes as an array, if they are exactly as many as it has."""
    if isinstance(dtype, PickledDtype):
        dtype = dtype.dtype
    elif isinstance(dtype, np.dtype):  # a user has allowed numpy's own
        dtype = _plain(dtype.str)
    else:
        raise UnpicklingError('it asks for an array without a dtype')
    if (type(raw) is not bytes or not isinstance(shape, tuple)
            or any(type(n) is not int or n < 0 for n in shape)
            or len(raw) != math.prod(shape) * dtype.itemsize):
        raise UnpicklingError('it asks for an array of another size than its '
                              'data')
    if dtype.kind == 'U':
        raw.decode(f'utf-32-{"be" if dtype.str[0] == ">" else "le"}')
    return np.ndarray(shape, dtype, raw)


#: full name in a pickle -> what it stands for
STAND_INS = {
    'numpy.ndarray': PickledArray,
    'numpy.dtype': PickledDtype,
    'builtins.bytes': no_bytes,  # the data of an array that is empty
    **{f'numpy.{core}.multiarray.{name}': part
       for core in ('_core', 'core')
       for name, part in (('_reconstruct', reconstruct), ('scalar', scalar))}
}
