"""The two hosts: which one there is, and what both lack.

``mmpretrain`` + ``mmengine`` + ``mmcv-lite`` and the maintained ``onedl-*``
fork are imported by the same names.
"""

import pkgutil
import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.version import Version

from .requirements import BOUNDS, FAMILIES, bounded

_INSTALL = {
    'openmmlab': 'pip install "gap_plugin[openmmlab]" (mmpretrain, mmengine, '
                 'mmcv-lite)',
    'onedl': 'pip install "gap_plugin[onedl]" (the maintained onedl-* fork)',
}


def versions() -> dict[str, str]:
    """What is installed of the libraries that numbers depend on."""
    return _installed(BOUNDS)


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
        lowest, first_above = BOUNDS[name]
        if Version(found) < Version(lowest) or (
                first_above and Version(found) >= Version(first_above)):
            warnings.warn(
                f'{name} {found} is outside of the versions that gap_plugin '
                f'is tested with: pip install "{bounded(name)}"',
                stacklevel=4)


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
    import torch

    if (launcher != 'pytorch' or torch.cuda.is_available()
            or torch.distributed.is_initialized()):
        return False
    torch.distributed.init_process_group('gloo')
    return True
