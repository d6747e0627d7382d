"""The two hosts: which versions, what their checkpoints hold, CPU groups.

``mmpretrain`` + ``mmengine`` + ``mmcv-lite`` and the maintained ``onedl-*``
fork are imported by the same names.
"""

import os
import pickle
import pkgutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from packaging.version import Version

from .requirements import BOUNDS, FAMILIES, bounded

_TESTED = BOUNDS

_INSTALL = {
    'openmmlab': 'pip install "gap_plugin[openmmlab]" (mmpretrain, mmengine, '
                 'mmcv-lite)',
    'onedl': 'pip install "gap_plugin[onedl]" (the maintained onedl-* fork)',
}


def versions() -> dict[str, str]:
    """What is installed of the libraries that numbers depend on."""
    return _installed(_TESTED)


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_host() -> None:
    """Make sure that one host is there, whole, and runs on this Python.

    Raises:
        ImportError: If MMPretrain, MMEngine or MMCV is missing, if both
            hosts are installed, or if this Python is too new for the one
            that is; with the commands that repair it.
    """
    found = {host: _installed(names) for host, names in FAMILIES.items()}
    upstream, fork = found['openmmlab'], found['onedl']
    missing = [name for name in ('mmpretrain', 'mmengine', 'mmcv')
               if _is_missing(name)]
    old_python = hasattr(pkgutil, 'find_loader')
    if upstream and fork:
        problem = (
            'two hosts are installed, which overwrite files of each other ('
            f'{", ".join(upstream)} and {", ".join(fork)})')
    elif 'mmengine' in upstream and not old_python:
        problem = (
            f'mmengine {upstream["mmengine"]} does not run on Python '
            f'{sys.version_info.major}.{sys.version_info.minor}: it calls '
            'pkgutil.find_loader, which is gone since 3.14')
    elif missing:
        problem = f'{", ".join(missing)} is not installed'
    else:
        _warn_of_versions()
        return
    # pip finds a distribution "already satisfied" whose files another has
    # taken away with it: all of them go first
    every = [*upstream, *fork]
    repair = f'pip uninstall -y {" ".join(every)}, then ' if every else ''
    hosts = [_INSTALL[host] for host in ('openmmlab', 'onedl')
             if host == 'onedl' or old_python]
    raise ImportError(f'gap_plugin needs MMPretrain, but {problem}: {repair}'
                      f'{" or ".join(hosts)}')


def _is_missing(module: str) -> bool:
    """Whether a module is missing, or no more than its folder is left."""
    spec = find_spec(module)
    return spec is None or spec.origin is None


def _warn_of_versions() -> None:
    for name, found in versions().items():
        lowest, first_above = _TESTED[name]
        if Version(found) < Version(lowest) or (
                first_above and Version(found) >= Version(first_above)):
            warnings.warn(
                f'{name} {found} is outside of the versions that gap_plugin '
                f'is tested with: pip install "{bounded(name)}"',
                stacklevel=4)


def allow_host_checkpoints() -> None:
    """Let MMEngine load its own checkpoints, and no code with them.

    A checkpoint of MMEngine holds a ``HistoryBuffer`` and numpy values, which
    ``torch.load(weights_only=True)``, the default since torch 2.6, refuses.
    These classes are put on torch's allow-list by name; entries that are
    pairs outlive MMEngine's own temporary ones. All loaders of MMEngine are
    then held to ``weights_only=True``, for those of the fork fall back to
    full unpickling. Where MMEngine lists its loaders, under
    ``CheckpointLoader``, is its public place to register others.
    """
    import numpy as np
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.runner import CheckpointLoader

    statistics = {
        name: getattr(HistoryBuffer, name)
        for name in ('mean', 'min', 'max', 'current')
    }

    def restricted_getattr(owner: Any, name: str) -> Callable:
        if owner is HistoryBuffer and name in statistics:
            return statistics[name]
        raise ValueError(
            f'a checkpoint asks for the attribute {name!r} of {owner!r}; '
            'only the statistics of HistoryBuffer are given out.')

    core = import_module('numpy._core.multiarray' if hasattr(np, '_core') else
                         'numpy.core.multiarray')
    history = 'mmengine.logging.history_buffer.HistoryBuffer'
    allowed = [(HistoryBuffer, history),
               (restricted_getattr, 'builtins.getattr'),
               (np.ndarray, 'numpy.ndarray'), (np.dtype, 'numpy.dtype')]
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        allowed += [(core._reconstruct, f'{module}._reconstruct'),
                    (core.scalar, f'{module}.scalar')]
    for code in '?bBhHiIlLqQefdg':
        kind = type(np.dtype(code))
        allowed.append((kind, f'numpy.dtypes.{kind.__name__}'))
    torch.serialization.add_safe_globals(allowed)

    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if not hasattr(loader, '_weights_only'):
            CheckpointLoader.register_scheme(
                prefix, loader=_weights_only(loader), force=True)


def allow_classes(*names: str) -> None:
    """Let checkpoints hold objects of further classes.

    For checkpoints of one's own that hold more than weights, such as the
    ``argparse.Namespace`` that timm's training script leaves. Unpickling
    calls a class with what the file says: allow none that acts on its
    arguments (runs, deletes, connects).

    Args:
        names: Full names of classes, ``'package.module.Class'``.

    Raises:
        TypeError: If a name stands for no class.
        ValueError: If there is nothing of that name.
    """
    allowed = []
    for name in names:
        module, _, attribute = name.rpartition('.')
        try:
            found = getattr(import_module(module), attribute)
        except (AttributeError, ImportError, ValueError):
            raise ValueError(
                f'there is no class {name!r} to allow in checkpoints; give '
                "full names, such as 'argparse.Namespace'.") from None
        if not isinstance(found, type):
            raise TypeError(
                f'{name!r} is {type(found).__name__}, no class: functions in '
                'a checkpoint are code, and are not allowed.')
        # as pairs: MMEngine's own context takes bare classes away again; a
        # file has the name of the module that a class was made in
        made_in = f'{found.__module__}.{found.__qualname__}'
        allowed += [(found, name), (found, made_in)]
    torch.serialization.add_safe_globals(allowed)


_FORCE, _FORBID = (f'TORCH_FORCE_{no}WEIGHTS_ONLY_LOAD' for no in ('', 'NO_'))
_lock = threading.RLock()


def _weights_only(loader: Callable) -> Callable:
    """A loader of MMEngine that unpickles nothing off the allow-list."""

    @wraps(loader)
    def load(filename: str, *args: Any, **kwargs: Any) -> Any:
        # torch's own switch: it wins over what a caller passes
        with _lock:
            before = {key: os.environ.pop(key, None)
                      for key in (_FORCE, _FORBID)}
            os.environ[_FORCE] = '1'
            try:
                return loader(filename, *args, **kwargs)
            except pickle.UnpicklingError as error:
                reason = str(error).partition('WeightsUnpickler error: ')[2]
                reason = (reason or str(error)).strip().splitlines()[0]
                raise ValueError(
                    f'checkpoint {filename!r} carries pickled code, which is '
                    f'not run, or is damaged ({reason[:160]}): save its '
                    'weights alone, or allow classes that you trust with '
                    'gap_plugin.allow_classes(NAME).') from None
            finally:
                for key, value in before.items():
                    os.environ.pop(key, None)
                    if value is not None:
                        os.environ[key] = value

    load._weights_only = True
    return load


def init_cpu_group(launcher: str) -> bool:
    """Start a gloo group for a launcher on a machine without a GPU.

    MMEngine's own set-up calls ``torch.cuda.set_device``; it is passed over
    when a group exists.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``. Only
            ``'pytorch'`` (torchrun) tells torch all that it needs.

    Returns:
        Whether a group was started.
    """
    if (launcher != 'pytorch' or torch.cuda.is_available()
            or torch.distributed.is_initialized()):
        return False
    torch.distributed.init_process_group('gloo')
    return True
