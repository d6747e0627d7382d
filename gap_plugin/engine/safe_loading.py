"""Checkpoints of MMEngine, read without the code that a file may carry."""

import io
import os
import os.path as osp
from collections.abc import Callable
from importlib import import_module
from pathlib import PurePosixPath
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import get_file_backend
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader, checkpoint

from ..checkpoint_files import read_checkpoint_file
from .pickled_numpy import STAND_INS


class _OneCycle:
    """MMEngine's ``OneCycleParamScheduler`` in a pickle: its two curves."""

    _annealing_cos = staticmethod(OneCycleParamScheduler._annealing_cos)
    _annealing_linear = staticmethod(OneCycleParamScheduler._annealing_linear)


#: class -> the functions of it that a pickle may name
_FUNCTIONS = {
    HistoryBuffer: ('mean', 'min', 'max', 'current'),
    _OneCycle: ('_annealing_cos', '_annealing_linear'),
}


def _restricted_getattr(owner: Any, name: str) -> Callable:
    if isinstance(owner, type) and name in _FUNCTIONS.get(owner, ()):
        return getattr(owner, name)
    raise UnpicklingError(
        f'it asks for the attribute {name!r} of a {type(owner).__name__}; '
        'only the statistics of HistoryBuffer are given out')


#: full name in a pickle -> what it stands for
_ALLOWED = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler':
        _OneCycle,
    'builtins.getattr': _restricted_getattr,
    'mmengine.config.config.ConfigDict': ConfigDict,  # in a metainfo
    'builtins.slice': slice,
    **STAND_INS
}


def allow_host_checkpoints() -> None:
    """Let MMEngine load its own checkpoints, and no code with them.

    A checkpoint of MMEngine holds a ``HistoryBuffer`` and numpy values, which
    ``torch.load(weights_only=True)``, the default since torch 2.6, refuses.
    They are put on torch's allow-list by name, those of numpy as stand-ins;
    entries that are pairs outlive MMEngine's own temporary ones. MMEngine's
    loaders are replaced where it lists them, under ``CheckpointLoader``,
    which is its public place to register others: those of the fork fall back
    to full unpickling.
    """
    torch.serialization.add_safe_globals(
        [(part, name) for name, part in _ALLOWED.items()])
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if loader.__module__ == checkpoint.__name__:  # none of a user's own
            scheme = prefix.rpartition(')?')[2].removesuffix('://')
            CheckpointLoader.register_scheme(prefix, _LOADERS[scheme], True)


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
        if not isinstance(name, str):
            raise TypeError(f'allow_classes takes full names, such as '
                            f"'argparse.Namespace', got {name!r}.")
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
        allowed += [(found, key) for key in (name, made_in)
                    if key not in _ALLOWED]
    torch.serialization.add_safe_globals(allowed)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a file."""
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'checkpoint {filename!r} can not be found.')
    return read_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: Any = None,
                   model_dir: str | None = None,
                   progress: bool = True) -> Any:
    """Read a file of the web, downloaded once, where torch keeps such."""
    folder = model_dir or osp.join(torch.hub.get_dir(), 'checkpoints')
    path = osp.join(folder, PurePosixPath(urlparse(filename).path).name)
    if not is_main_process():
        barrier()  # it is there by then, on a disk that all share
    if not osp.exists(path):
        os.makedirs(folder, exist_ok=True)
        torch.hub.download_url_to_file(filename, path, progress=progress)
    if is_main_process():
        barrier()
    return read_checkpoint_file(path, map_location, _told(filename))


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Read weights of torchvision."""
    url = checkpoint.get_torchvision_models()[_name(filename)]
    return load_from_http(url, map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Read weights of OpenMMLab's other packages."""
    name = _name(filename)
    name = checkpoint.get_deprecated_model_names().get(name, name)
    url = checkpoint.get_external_models()[name]
    if url.startswith(('http://', 'https://')):
        return load_from_http(url, map_location)
    return load_from_local(osp.join(checkpoint._get_mmengine_home(), url),
                           map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Read weights of MMClassification."""
    url = checkpoint.get_mmcls_models()[_name(filename)]
    return checkpoint._process_mmcls_checkpoint(
        load_from_http(url, map_location))


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Read a file of Pavi."""
    from pavi import modelcloud
    model = modelcloud.get(_name(filename))
    with TemporaryDirectory() as folder:
        path = osp.join(folder, model.name)
        model.download(path)
        return read_checkpoint_file(path, map_location, _told(filename))


def load_from_ceph(filename: str, map_location: Any = None,
                   backend: str = 'petrel') -> Any:
    """Read a file of an object storage."""
    found = get_file_backend(filename, backend_args=dict(backend=backend))
    return read_checkpoint_file(io.BytesIO(found.get(filename)),
                                map_location, _told(filename))


def _name(filename: str) -> str:
    return filename.partition('://')[2]


def _told(filename: str) -> str:
    return f'checkpoint {filename!r}'


#: scheme -> loader, under the names that MMEngine has in its log
_LOADERS = {
    '': load_from_local, 'http': load_from_http, 'https': load_from_http,
    'torchvision': load_from_torchvision, 'modelzoo': load_from_torchvision,
    'open-mmlab': load_from_openmmlab, 'openmmlab': load_from_openmmlab,
    'mmcls': load_from_mmcls, 'pavi': load_from_pavi, 's3': load_from_ceph,
    'petrel': load_from_ceph
}
