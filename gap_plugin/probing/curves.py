"""Curves of a probe, by the visualizer of its config."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.visualization import Visualizer


@contextmanager
def curves(cfg: Config,
           folder: str | Path | None) -> Iterator[Callable | None]:
    """The config's visualizer, closed in the end, and the current one no more.

    Args:
        cfg: The config.
        folder: Where it writes; None for no curves.

    Yields:
        Its ``add_scalars``; None without a visualizer.
    """
    if not folder or not cfg.get('visualizer'):
        yield None
        return
    # its own, or two probes of a process share what they log
    name = f'probe_{uuid4().hex[:8]}'
    visualizer = VISUALIZERS.build(dict(
        cfg.visualizer, save_dir=str(folder), name=name))
    try:
        yield visualizer.add_scalars
    finally:
        visualizer.close()
        for kind in (type(visualizer), Visualizer):
            kind._instance_dict.pop(name, None)
