"""From a model, its stores and its log to the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from ..engine.building import has_seen_labels, written_by_probe
from ..files import written_whole
from ..prediction.tables import write_table
from . import figures, sections
from .copies import SAME_FILE, Pair, find_pairs
from .page import render
from .predictions import calibration, check_single_label, predict
from .run_folder import series
from .splits import Split
from .suspects import Suspects, rank_labels

#: Columns of the table of suspects.
COLUMNS = dict(image=str, label=str, suggested=str, score=np.float32)


@dataclass(frozen=True)
class Report:
    """What a report has found.

    Attributes:
        html: The page.
        accuracy: ``share`` of right images in percent, with ``low`` and
            ``high`` of its interval.
        calibration_error: Expected, 0 to 1.
        copies: How many images are in the training split, too; None if
            there is none.
        suspects: Rows of :data:`COLUMNS`, the likeliest error first; empty
            where they cannot be ranked.
    """

    html: str
    accuracy: dict[str, Any]
    calibration_error: float
    copies: int | None
    suspects: list[tuple]


def make_report(model: nn.Module, cfg: Config,
                splits: Mapping[str, Split], *,
                checkpoint: str = '', why: str = '',
                log: Sequence[dict] = (), no_log: str = '',
                facts: Mapping[str, str] | None = None,
                suspects_file: str = '') -> Report:
    """Make the page of a model and its data.

    Args:
        model: The classifier, with its weights.
        cfg: The config that it was built from.
        splits: Those of :func:`~gap_plugin.report.find_splits`, each with
            its store; the last one is evaluated.
        checkpoint: What the page calls the weights.
        why: Which of several checkpoints it is.
        log: Rows of a training, as
            :func:`~gap_plugin.report.run_folder.read_curves` gives them.
        no_log: Why there are none.
        facts: What else the last part says: name -> value.
        suspects_file: What the page calls the table of suspects.

    Raises:
        ValueError: If the model does not choose one of several classes.
    """
    check_single_label(model)
    (*others, own) = splits.values()
    train = others[0] if others else None
    found = predict(model, own.store)
    known = own.classes or ()
    classes = [*known, *map(str, range(len(known), found.classes))]
    names = sections.Names([*splits.values()], classes)
    device = next(model.parameters()).device
    same, near = (([], []) if train is None else find_pairs(
        (train.names, own.names), (train.files, own.files),
        (train.store.features, own.store.features),
        (train.array, own.array), device))
    ranked, rows, reason = None, [], ''
    try:
        ranked = _ranked(own, train, same, found.classes, device)
    except ValueError as error:
        reason = str(error)
    if ranked is not None:
        rows = sections.suspect_rows(ranked, [*splits.values()], names)
        told = sections.suspects(
            ranked, [*splits.values()], names, suspects_file,
            _trained(model))
    top, calibrated = sections.accuracy(found), calibration(found)
    drawn, unit = series(list(log))
    backbone = cfg.model.get('backbone') or {}
    network = backbone.get('model_name') or backbone.get('type')
    html = render(dict(
        title=network, images=len(own), split=own.name,
        class_count=found.classes, checkpoint=checkpoint, why=why,
        root=names.root, accuracy=top,
        classes=sections.class_rows(found, names, train),
        mistakes=sections.mistakes(found, own, names, model),
        suspects=dict(reason=reason) if ranked is None else told,
        copies=dict(reason='the config has no training images.')
        if train is None else sections.copies(same, near, own, train, names,
                                              found),
        confusion=sections.confusion(found, own, names),
        calibration=sections.calibration(
            calibrated, figures.reliability(calibrated)),
        curves=dict(reason='' if drawn else no_log or 'there is no log.',
                    figures=[(title, uri, _last(drawn, names_of))
                             for title, uri, names_of in figures.curves(
                                 drawn, unit)]),
        facts=list((facts or {}).items()), config=cfg.pretty_text))
    return Report(html, top, calibrated.error,
                  None if train is None else len(same), rows)


def _trained(model: nn.Module) -> bool:
    """Whether the backbone has seen the labels, so that it may fit them."""
    meta = getattr(model, '_meta', {})
    if written_by_probe(meta):
        return has_seen_labels(meta, None)
    return any(p.requires_grad for p in model.backbone.parameters())


def _last(drawn: Mapping[str, list], names: Sequence[str]) -> str:
    """How the curves of a diagram end, in words."""
    return '; '.join(f'{name} ends at {drawn[name][-1][1]:.4g}'
                     for name in names)


def _ranked(own: Split, train: Split | None, same: list[Pair],
            classes: int, device: Any) -> Suspects:
    """The ranking of all images of the splits, of a file in both once."""
    if train is None:
        return rank_labels(
            own.store.features, own.labels, _equal(own.store.features),
            classes=classes, device=device)
    features, labels = (np.concatenate(sides) for sides in (
        (train.store.features, own.store.features),
        (train.labels, own.labels)))
    groups, once = _equal(features), np.ones(len(labels), bool)
    for pair in same:
        place = len(train) + pair.row
        groups[place] = groups[pair.other]
        once[place] = pair.why != SAME_FILE
    rows = np.flatnonzero(once)
    found = rank_labels(features[rows], labels[rows], groups[rows],
                        classes=classes, device=device)
    scores, suggested = np.zeros(len(labels)), np.zeros(len(labels), int)
    scores[rows], suggested[rows] = found.scores, found.suggested
    return Suspects(rows[found.order], scores, suggested)


def _equal(features: np.ndarray) -> np.ndarray:
    """The first row of the same features, for each row: copies in a split."""
    first: dict[int, int] = {}
    return np.array([first.setdefault(hash(row.tobytes()), i)
                     for i, row in enumerate(features)])


def write_report(report: Report, out: str | Path,
                 suspects: str | Path | None = None) -> None:
    """Write the page, and the table of suspects.

    Args:
        report: What was made.
        out: The page.
        suspects: The table, ``.csv``, ``.json`` or ``.parquet``.

    Raises:
        OSError: If a file cannot be written.
    """
    if suspects:
        columns = [*zip(*report.suspects, strict=True)] or [()] * 4
        columns[3] = np.array(columns[3], np.float32)
        with written_whole(suspects) as path:
            write_table(path, Path(suspects).suffix, COLUMNS, [columns])
    with written_whole(out) as path:
        path.write_text(report.html, encoding='utf-8')
