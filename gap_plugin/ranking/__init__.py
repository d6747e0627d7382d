"""Which backbone is best on some data: a probe for each.

Reading order: :mod:`.options` (of what, and how), :mod:`.measure` (one
network after another), :mod:`.table` and :mod:`.plot` (what is written).
"""

from .measure import rank
from .options import RankingOptions, chosen_models

__all__ = ['RankingOptions', 'chosen_models', 'rank']
