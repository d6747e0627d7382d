"""Names that libraries have changed since MMPretrain's scripts were written.

Each is supplied when a script that uses it is run, in that process.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def matplotlib_adjust_bbox() -> None:
    """``adjust_bbox`` takes the renderer as an argument since 3.11."""
    from matplotlib import _tight_bbox

    stock = _tight_bbox.adjust_bbox
    if inspect.signature(stock).parameters.get('renderer') is None:
        return

    @wraps(stock)
    def adjust_bbox(fig: Any, bbox_inches: Any, *args: Any,
                    **kwargs: Any) -> Callable:
        if not args and 'renderer' not in kwargs:
            kwargs['renderer'] = fig.canvas.get_renderer()
        return stock(fig, bbox_inches, *args, **kwargs)

    _tight_bbox.adjust_bbox = adjust_bbox


def sklearn_n_iter() -> None:
    """``TSNE(n_iter=)`` is called ``max_iter`` since scikit-learn 1.5."""
    from sklearn import manifold

    stock = manifold.TSNE

    @wraps(stock, updated=())
    def tsne(*args: Any, **kwargs: Any) -> Any:
        if 'n_iter' in kwargs:
            kwargs['max_iter'] = kwargs.pop('n_iter')
        return stock(*args, **kwargs)

    if 'n_iter' not in inspect.signature(stock).parameters:
        manifold.TSNE = tsne


def pandas_append() -> None:
    """``DataFrame.append`` is gone since pandas 2."""
    import pandas

    def append(self: Any, other: Any) -> Any:
        return pandas.concat([self, other])

    if not hasattr(pandas.DataFrame, 'append'):
        pandas.DataFrame.append = append


def numpy_in1d() -> None:
    """``numpy.in1d``, which metrics of retrieval use, is gone since 2.4."""
    import numpy

    if not hasattr(numpy, 'in1d'):
        numpy.in1d = numpy.isin


def torch_load() -> None:
    """``torch.load`` refuses code in many lines, which advise running it."""
    import torch

    from ..checkpoint_files import read_checkpoint_file

    stock = torch.load

    @wraps(stock)
    def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if kwargs:  # as libraries call it, which know what they want
            return stock(file, map_location, **kwargs)
        return read_checkpoint_file(file, map_location)

    torch.load = load


SUPPLY = {
    'train': (numpy_in1d, ),
    'test': (numpy_in1d, ),
    'eval_metric': (numpy_in1d, ),
    'kfold-cross-valid': (numpy_in1d, ),
    'browse_dataset': (matplotlib_adjust_bbox, ),
    'vis_tsne': (sklearn_n_iter, ),
    'shape_bias': (pandas_append, ),
    'publish_model': (torch_load, ),
    'reparameterize_model': (torch_load, ),
}
