"""The two hosts: which versions there are, and what both lack.

``mmpretrain`` + ``mmengine`` + ``mmcv-lite`` and the maintained ``onedl-*``
fork are imported by the same names.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from packaging.version import Version

#: distribution -> lowest tested version, first version that is not tested
_TESTED = {
    'mmpretrain': ('1.2.0', '1.3.0'),
    'mmengine': ('0.10.7', '0.11.0'),
    'onedl-mmpretrain': ('1.3.6', '1.4.0'),
    'onedl-mmengine': ('0.10.12', '0.11.0'),
    'mmcv-lite': ('2.2.0', '2.3.0'),
    'mmcv': ('2.0.0', '2.3.0'),
    'onedl-mmcv': ('2.3.6', '2.4.0'),
    'timm': ('1.0.31', '1.1.0'),
}

_INSTALL = ('pip install "gap_plugin[openmmlab]" (mmpretrain, mmengine, '
            'mmcv-lite) or pip install "gap_plugin[onedl]" (the maintained '
            'onedl-* fork)')


def versions() -> dict[str, str]:
    """What is installed of the libraries that numbers depend on."""
    found = {}
    for name in ('torch', *_TESTED):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_host() -> None:
    """Make sure that one host is there.

    Raises:
        ImportError: If MMPretrain, MMEngine or MMCV is missing; with the two
            commands that install a host.
    """
    missing = [
        name for name in ('mmpretrain', 'mmengine', 'mmcv')
        if find_spec(name) is None
    ]
    if missing:
        raise ImportError(f'gap_plugin needs MMPretrain, but '
                          f'{", ".join(missing)} is not installed: {_INSTALL}'
                          ) from None
    for name, found in versions().items():
        if name not in _TESTED:
            continue
        lowest, first_above = _TESTED[name]
        if not Version(lowest) <= Version(found) < Version(first_above):
            warnings.warn(
                f'{name} {found} is outside of the versions that gap_plugin '
                f'is tested with: pip install '
                f'"{name}>={lowest},<{first_above}"',
                stacklevel=3)


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
