"""Types and ranges of arguments, checked where a user gives them."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from typing import Any

from torch import nn


def _anything(value: Any) -> bool:
    return True


#: kind -> its types, what it has to be besides, and both in words
_KINDS: dict[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    'flag': ((bool, ), _anything, 'True or False'),
    'flag_or_auto': ((bool, str), lambda x: not isinstance(x, str)
                     or x == 'auto', "True, False or 'auto'"),
    'count': ((Integral, ), lambda x: x > 0, 'a positive integer'),
    'bits': ((Integral, ), lambda x: 8 <= x <= 16, 'an integer from 8 to 16'),
    'share': ((Real, ), lambda x: 0 <= x <= 1, 'a number from 0 to 1'),
    'crop': ((Real, ), lambda x: 0 < x <= 2, 'over 0 and at most 2'),
    'amount': ((Real, ), lambda x: 0 <= x < math.inf,
               'a number that is not negative'),
    'limits': ((list, tuple),
               lambda x: len(x) == 2 and all(isinstance(y, Real) for y in x)
               and 0 < x[0] <= x[1] < math.inf,
               'a pair of positive numbers, the lower one first'),
    'fill': ((Integral, list, tuple), _anything,
             'an integer, or one for each channel'),
    'text': ((str, ), bool, 'a text that is not empty'),
    'path': ((str, PathLike), lambda x: str(x),
             'the path of a file, and not empty (an unset variable of the '
             'shell?)'),
    'settings': ((dict, ), _anything, 'a dict'),
    'configs': ((dict, list, tuple),
                lambda x: all(isinstance(y, dict) for y in (
                    [x] if isinstance(x, dict) else x)),
                'a dict or a list of them'),
    'part': ((dict, nn.Module), _anything,
             'a config, dict(type=...), or a module'),
    'parts': ((dict, nn.Module, list, tuple),
              lambda x: not isinstance(x, (list, tuple)) or all(
                  isinstance(y, (dict, nn.Module)) for y in x),
              'a config, dict(type=...), a module, or a list of them'),
    'transform': ((dict, ), _anything,
                  "the dict of a stock transform, such as dict("
                  "type='RandAugment', policies='timm_increasing', "
                  "num_policies=2, magnitude_level=9) for timm's "
                  "'rand-m9-inc1'"),
    'steps': ((list, tuple), _anything, 'a list of transforms'),
}


def check_arguments(owner: str, **kinds: dict[str, Any]) -> None:
    """Refuse arguments of another type or range.

    Args:
        owner: Whose they are, for the message.
        **kinds: Kind -> the arguments by name; ``kind_or_none`` lets None
            pass.

    Raises:
        TypeError: If an argument has another type; a bool is no number.
        ValueError: If it is out of range.
    """
    for kind, given in kinds.items():
        types, fits, allowed = _KINDS[kind.removesuffix('_or_none')]
        for name, value in given.items():
            if value is None and kind.endswith('_or_none'):
                continue
            typed = isinstance(value, types) and (
                bool in types or not isinstance(value, bool))
            if not typed or not fits(value):
                raise (ValueError if typed else TypeError)(
                    f'{name} of {owner} must be {allowed}, got {value!r}.')
