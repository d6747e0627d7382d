"""Predictions of images that have no labels, as a table.

Reading order: :mod:`.images` (which), :mod:`.scores` (what a model says of
them), :mod:`.exported` (what an exported file says), :mod:`.columns` (what of
that stands in a row), :mod:`.rows` (rows that are done, on disk),
:mod:`.tables` (CSV, JSON, Parquet), :mod:`.prediction` (the pass).
"""

from .columns import Columns
from .exported import ExportedClassifier
from .images import Images, find_images
from .prediction import Predictions, check_out, predict
from .scores import Classifier

__all__ = [
    'Classifier', 'Columns', 'ExportedClassifier', 'Images', 'Predictions',
    'check_out', 'find_images', 'predict'
]
