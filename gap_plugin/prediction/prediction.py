"""The pass: images to scores, and on to a table."""

import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch

from ..features.batches import batches, collate_of
from ..features.fingerprint import hash_of
from ..features.images import BadImages, Rows, state_of
from ..files import of_each, remove_whole
from ..host import versions
from ..locks import alone
from ..messages import SHOWN, refuse_undecodable
from ..progress import bar
from ..version import __version__
from .columns import Columns, Layout
from .exported import ExportedClassifier
from .images import Images
from .rows import RowsOnDisk
from .scores import Classifier
from .tables import Part, check_format, write_table

#: What scores images.
Scorer = Classifier | ExportedClassifier
#: What ``'auto'`` takes for few images has no name to ask for it.
_AGAIN = {'channels_last': ('auto', 0)}


@dataclass(frozen=True)
class Predictions:
    """What a pass has given.

    Attributes:
        rows: Images in the table.
        skipped: Name of each image that cannot be read -> why.
        engine: What has run the network.
        speed: Images a second, without what it takes to start; None if
            nothing was left to do.
    """

    rows: int
    skipped: dict[str, str]
    engine: str
    speed: float | None


def check_out(out: str | Path, *, resume: bool = False,
              force: bool = False) -> Path:
    """Refuse a place for a table that something else has.

    Args:
        out: The table; its end says which kind it is.
        resume: Whether a run that was cut off is gone on with.
        force: Whether what is there is replaced.

    Raises:
        ImportError: If a library for this kind is missing.
        OSError: If it is there already, or its folder is not.
        ValueError: If its end is another one, or it is half there.
    """
    out = Path(out)
    check_format(out)
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f'out={str(out)!r}: there is no folder '
                                f'{str(out.parent)!r}; make it first.')
    half = RowsOnDisk(out)
    if half.folder.exists() and not resume and not force:
        raise ValueError(
            f'{str(half.folder)!r} is there, of a run that was cut off: go '
            'on with it by resume=True, or drop it by force=True.')
    if out.exists() and not force and not (resume and half.is_written):
        raise FileExistsError(f'out={str(out)!r} is there already: use '
                              'force=True to replace it, or another name.')
    return out


def predict(scorer: Scorer, images: Images, out: str | Path,
            columns: Columns | None = None, *,
            batch_size: int | None = None, workers: int | None = None,
            engine: str = 'auto', amp: bool = False, resume: bool = False,
            force: bool = False) -> Predictions:
    """Predict the classes of images, and write a table of them.

    It has a row an image that can be read, in the order of the images, and
    the columns ``image``, ``label``, ``score``, ``label_2``, ``score_2`` and
    so on. Rows go to ``<out>.partial`` as they are made, and memory does not
    grow with them; the table appears when it is whole.

    Args:
        scorer: What scores images.
        images: Of which images.
        out: A ``.csv``, ``.json`` or ``.parquet`` file.
        columns: What a row shows.
        batch_size: None for that of the test.
        workers: Processes that read images; None for those of the test.
        engine: What runs the network: ``'auto'``, ``'torch'``,
            ``'compile'`` or ``'onnxruntime'``.
        amp: Whether to run under autocast.
        resume: Whether a run that was cut off is gone on with. It has to be
            of the same weights, images and arguments.
        force: Whether what is there is replaced.

    Returns:
        How many rows there are, and what was left out.

    Raises:
        BadImages: If no image can be read.
        OSError: If the table is there already, or the disk is full.
        ValueError: If what was cut off is of something else, or scores are
            not finite.
    """
    out = check_out(out, resume=resume, force=force)
    _check_names(images, out)
    columns = columns or Columns()
    loader = scorer.loader(batch_size, workers)
    table = RowsOnDisk(out)
    with alone(out.with_name(f'.{out.name}.lock'), out):
        if not resume:
            remove_whole(table.folder)
        rows = Rows(scorer.samples(images), images)
        first = rows.first(len(images))
        if first is None:
            raise BadImages(_told(rows.bad(), images))
        made = table.plan()
        count = len(images)
        if made and engine == 'auto':  # what is faster now may be another one
            engine, count = _AGAIN.get(made['engine'].split(' ', 1)[-1], (
                made['engine'].split()[0], count))
        # copies: preprocessors write into samples, and move them; two, for
        # one image is no batch to an exporter
        name = scorer.open(
            collate_of(loader)([deepcopy(first) for _ in range(
                max(2, min(loader['batch_size'], len(images))))]),
            logits=columns.output_type == 'logit', engine=engine, amp=amp,
            count=count)
        layout = columns.of(scorer.number, scorer.classes, scorer.usual())
        table.start(dict(
            checkpoint=scorer.identity(), images=_identity(images),
            classes=hash_of(scorer.classes), **asdict(columns),
            batch_size=loader['batch_size'], engine=name, amp=amp,
            versions=dict(versions(), gap_plugin=__version__)),
            layout.kind, loader['batch_size'])
        speed = _score(scorer, rows, loader, table, layout, out.name)
        bad = table.bad()
        most = 0
        for _, part in table.parts():
            most = max(most, int((part['label'] >= 0).sum(1).max()))
        found = layout.show(most)
        done = table.done
        table.finish(lambda path: write_table(
            path, out.suffix, found, _parts(table, bad, images, layout)))
    return Predictions(
        done - len(bad), {images.names[row]: bad[row] for row in sorted(bad)},
        name, speed)


def _score(scorer: Scorer, rows: Rows, loader: dict, table: RowsOnDisk,
           layout: Layout, what: str) -> float | None:
    """Score the images that are left; how many in a second."""
    size, images = loader['batch_size'], rows.names
    before, began = table.done, monotonic()
    blocks = list(range(-(-before // size), -(-len(images) // size)))
    with bar(len(images) - before, what) as advance:
        for block, (batch, reasons) in zip(blocks, batches(
                rows, loader, blocks, torch.cuda.is_available(),
                collate_of(loader)), strict=True):
            start = block * size
            found = np.zeros(len(reasons), layout.kind)
            good = np.array([not reason for reason in reasons])
            if batch is not None:
                logits, scores = scorer(batch)
                _check_finite(logits if layout.logits else scores, [
                    images.names[start + i] for i in np.flatnonzero(good)])
                found[good] = layout.fill(found[good], logits, scores)
            table.add(found, {start + i: reasons[i]
                              for i in np.flatnonzero(~good).tolist()})
            advance(len(reasons))
    return (table.done - before) / (monotonic() - began) if blocks else None


def _check_finite(scores: torch.Tensor, names: Sequence[str]) -> None:
    """Refuse scores that say nothing.

    Raises:
        ValueError: With the first image that has them.
    """
    finite = torch.isfinite(scores).all(1)
    if not finite.all():
        raise ValueError(
            f'the scores of {names[int(finite.int().argmin())]!r} are NaN or '
            'infinite: check the weights, or leave amp out.')


def _parts(table: RowsOnDisk, bad: dict[int, str], images: Images,
           layout: Layout) -> Iterator[Part]:
    """The table, some rows at a time."""
    for start, rows in table.parts():
        kept = [i for i in range(len(rows)) if start + i not in bad]
        yield layout.part([images.names[start + i] for i in kept], rows[kept])


def _identity(images: Images) -> str:
    """What stands for images: their names, sizes and times of change."""
    return hash_of([images.names, of_each(state_of, list(images))])


def _told(bad: dict[int, str], images: Images) -> str:
    few = ', '.join(f'{images.names[row]!r} ({bad[row]})'
                    for row in sorted(bad)[:SHOWN])
    return (f'none of {len(images)} images can be read: {few}'
            f'{", ..." if len(bad) > SHOWN else ""}; check the images, and '
            'the pipeline of the config.')


def _check_names(images: Images, out: Path) -> None:
    """Tell of names that are no text, or refuse them.

    Raises:
        ValueError: If the table cannot hold them.
    """
    kind = out.suffix.lower()
    if kind == '.json':  # which escapes them
        return
    try:
        refuse_undecodable(images.names)
    except ValueError:
        if kind != '.csv':
            raise
        warnings.warn('names of images are not UTF-8, and stand in '
                      f'{str(out)!r} as they are: read it with '
                      "errors='surrogateescape'.", stacklevel=3)
