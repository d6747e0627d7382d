"""Does the ranking of label errors find those that were planted?

Labels of stored features are changed at random to other classes. The average
precision of the ranking, and the share of the changed ones among its first
2n, where n is how many were changed; beside them the same by each of its two
parts alone. Stores are those of ``gap-plugin extract``, all splits together.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score

import paired
from gap_plugin.features import FeatureStore
from gap_plugin.probing.choice import folds
from gap_plugin.probing.neighbours import unit
from gap_plugin.report.suspects import FOLDS, out_of_fold, rank_labels, vote


def plant(labels: np.ndarray, classes: int, share: float,
          seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with errors, and where these are."""
    chance = np.random.default_rng(seed)
    rows = chance.choice(len(labels), round(share * len(labels)),
                         replace=False)
    found = labels.copy()
    found[rows] = (labels[rows]
                   + chance.integers(1, classes, len(rows))) % classes
    return found, np.isin(np.arange(len(labels)), rows)


def measure(features: np.ndarray, truth: np.ndarray, share: float,
            seed: int) -> dict:
    """Figures of one draw."""
    classes = int(truth.max()) + 1
    labels, wrong = plant(truth, classes, share, seed)
    ranked = rank_labels(features, labels, classes=classes, seed=seed)
    x, known = unit(features), torch.tensor(labels)
    each = torch.arange(len(labels))
    parts = dict(
        probe=out_of_fold(x, known, folds(labels, np.arange(len(labels)),
                                          FOLDS, seed), classes, seed),
        neighbours=vote(x, known, each, classes))
    found = dict(sum=ranked.scores, **{
        name: -shares[each, known].numpy() for name, shares in parts.items()})
    count = int(wrong.sum())
    row = dict(share=share, seed=seed, planted=count, images=len(labels))
    for name, scores in found.items():
        first = np.argsort(-scores, kind='stable')[:2 * count]
        row[f'{name}_ap'] = float(average_precision_score(wrong, scores))
        row[f'{name}_first_2n'] = float(wrong[first].sum() / count)
    row['suggested_right'] = float(
        (ranked.suggested[wrong] == truth[wrong]).mean())
    return row


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('stores', nargs='+', type=Path, help='folders of '
                        'stores, each with train/ and val/')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--shares', type=float, nargs='+',
                        default=[.02, .05, .1])
    parser.add_argument('--out',
                        default='tools/benchmarks/results/label_errors.json')
    args = parser.parse_args()
    rows = []
    for folder in args.stores:
        stores = [FeatureStore(folder / split) for split in ('train', 'val')]
        features, truth = (np.concatenate([getattr(store, name)
                                           for store in stores])
                           for name in ('features', 'labels'))
        for share in args.shares:
            some = [dict(data=folder.parent.name,
                         **measure(features, truth, share, seed))
                    for seed in range(args.seeds)]
            rows += some
            told = {key: np.array([row[key] for row in some])
                    for key in some[0] if key.endswith(('_ap', '_2n'))}
            print(folder.parent.name, share, *(
                f'{key} {values.mean():.3f} ({values.min():.3f})'
                for key, values in told.items()))
    paired.write(args.out, rows)


if __name__ == '__main__':
    main()
