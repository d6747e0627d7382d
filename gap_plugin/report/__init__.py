"""A page that finds what to mend in a model and its data.

Reading order: :mod:`.run_folder` (what a training has left),
:mod:`.splits` (a split), :mod:`.predictions`, :mod:`.suspects` (labels),
:mod:`.copies` (images in two splits), :mod:`.pictures`, :mod:`.figures`,
:mod:`.sections` (the parts of the page), :mod:`.page` (HTML),
:mod:`.making` (all of it).
"""

from .making import Report, make_report, write_report
from .run_folder import find_checkpoint, find_config, read_curves
from .splits import Split, find_splits
from .suspects import Suspects, rank_labels

__all__ = [
    'Report', 'Split', 'Suspects', 'find_checkpoint', 'find_config',
    'find_splits', 'make_report', 'rank_labels', 'read_curves',
    'write_report'
]
