"""MMPretrain's own scripts, unmodified, with this package imported.

    python -m gap_plugin.stock publish_model in.pth out.pth

For scripts that take no config, and so import nothing of ours, and for those
that stumble over a library that has renamed something since they were
written: the old name is supplied in that process alone. Nothing of a third
party is changed by importing this package.
"""

from .launch import run, scripts

__all__ = ['run', 'scripts']
