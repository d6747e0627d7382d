"""Which backbone is best on some data: a probe for each.

Reading order: :mod:`.plot`, :mod:`.table` (what is written), :mod:`.measure`
(one network after another).
"""

from .measure import RankingOptions, chosen_models, rank

__all__ = ['RankingOptions', 'chosen_models', 'rank']
