"""Does a probe on stored features reach what the slow ways reach?

On the digits, with real weights: the probe, training of the frozen network
from the images (MMPretrain's own tool, the same epochs and seed, no
augmentation), and scikit-learn's logistic regression on the same features at
its best C. The top-1 of the first two is that of the last epoch, so that no
choice blurs the comparison; that of the best epoch stands beside it.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import numpy as np
from mmengine.config import Config
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import paired
from gap_plugin.features import FeatureStore
from probe_cost import STOCK, TOOLS, run


def frozen_config(args: argparse.Namespace, path: Path, seed: int) -> None:
    """The config, frozen, with the test pipeline for the training images."""
    cfg = Config.fromfile(TOOLS.parent / args.config)
    cfg.model.backbone.update(frozen_stages='all', img_size=args.size)
    cfg.train_dataloader.dataset.pipeline = (
        cfg.test_dataloader.dataset.pipeline)
    cfg.optim_wrapper.optimizer.lr = args.lr
    cfg.optim_wrapper.pop('paramwise_cfg', None)
    cfg.train_cfg.max_epochs = args.epochs
    cfg.param_scheduler = [dict(
        type='CosineAnnealingLR', end=args.epochs,
        convert_to_iter_based=True)]
    cfg.randomness = dict(seed=seed)
    cfg.dump(path)


def top1_of(lines: list[dict], last: bool) -> float:
    """Of the validations in a log, the last or the best."""
    found = [line['accuracy/top1'] for line in lines
             if 'accuracy/top1' in line]
    return found[-1] if last else max(found)


def scalars(folder: Path) -> list[dict]:
    """The log of a run."""
    (path, ) = folder.glob('*/vis_data/scalars.json')
    text = path.read_text(encoding='utf-8')
    return [json.loads(line) for line in text.splitlines()]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config',
                        default='configs/digits/tf_efficientnet_lite0.py')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            config = folder / 'config.py'
            frozen_config(args, config, seed)
            slow_s, _ = run(STOCK / 'train.py', config, '--work-dir',
                            folder / 'frozen')
            quick_s, text = run(
                TOOLS / 'linear_probe.py', config, '--work-dir',
                folder / 'work', '--epochs', args.epochs)
            slow, quick = (scalars(folder / 'frozen'),
                           scalars(folder / 'work' / 'probe'))
            told = float(re.findall(r'^accuracy/top1 ([\d.]+)$', text,
                                    re.M)[0])
            train, val = (FeatureStore(folder / 'work' / 'features' / split)
                          for split in ('train', 'val'))
            scaler = StandardScaler().fit(train.features)
            by_c = {}
            for c in np.logspace(-5, 2, 15):
                model = LogisticRegression(C=c, max_iter=3000)
                model.fit(scaler.transform(train.features), train.labels)
                by_c[float(c)] = 100 * model.score(
                    scaler.transform(val.features), val.labels)
        best_c = max(by_c, key=by_c.get)
        row = dict(
            seed=seed, probe_last=top1_of(quick, True), probe_best=told,
            frozen_last=top1_of(slow, True), frozen_best=top1_of(slow, False),
            logistic_regression=by_c[best_c], best_c=best_c,
            frozen_s=slow_s, probe_s=quick_s)
        print(row, flush=True)
        rows.append(row)
        if args.out:
            paired.write(args.out, rows)
    mean = {key: float(np.mean([row[key] for row in rows]))
            for key in rows[0] if key != 'seed'}
    print('mean', mean)
    if args.out:
        paired.write(args.out, [*rows, dict(mean=mean)])


if __name__ == '__main__':
    main()
