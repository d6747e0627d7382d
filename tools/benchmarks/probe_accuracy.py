"""Is a probe as right, untuned, as the best that others choose?

Features of each network are extracted once, of scikit-learn's digits and of a
folder of images with ``train`` and ``val``. Both are split at random, alike
in the classes, several times. On each split are trained, by the config that
``new-config`` writes: the probe as it is, with and without its ``BNNeck``, and
``--grid``; and, for comparison, scikit-learn's logistic regression on
standardised features, and linear classifiers as in DINOv2's evaluation (SGD on
the features as they are, 13 rates). C and rate are chosen by cross-validation,
as is the setting of the grid. ``--rank`` names more networks, with random
weights if the folder has none: all are ranked by the probe and by logistic
regression, on one split. ``name@64`` is a network at another image size.
Features and figures stay in a folder, from where the next run goes on.
"""

import argparse
import copy
import itertools
import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.stats import kendalltau
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    StratifiedShuffleSplit,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

import paired
from gap_plugin.config_writer import NewConfig, write_config
from gap_plugin.engine.building import build_classifier
from gap_plugin.features import FeatureStore, StoreWriter, extract
from gap_plugin.probing import DINOV2_RATES, grid, interval, probe

DATA = ('digits', 'folder')
#: Share of the training images of a split.
SHARE = dict(digits=0.8, folder=2 / 3)
EPOCHS = 100
#: Single settings of the probe that are compared.
DEFAULTS = {
    'probe': {},
    'probe, no decay': dict(weight_decay=0.),
    'probe, 3e-4, no decay': dict(lr=3e-4, weight_decay=0.),
    'probe, no BN': dict(norm=False)}


def classifier(name: str, args: argparse.Namespace,
               folder: Path) -> tuple[torch.nn.Module, Config]:
    """The classifier of the config that ``new-config`` writes."""
    network, _, size = name.partition('@')
    weights = args.weights / f'{network}.safetensors'
    write_config(NewConfig(
        network, args.images, recipe='linear', out=folder / 'config.py',
        img_size=int(size or 96), workers=0, force=True,
        checkpoint=weights if weights.exists() else None))
    cfg = Config.fromfile(folder / 'config.py')
    init_default_scope('mmpretrain')
    if not weights.exists():
        cfg.model.backbone.pretrained = False
    return build_classifier(cfg), cfg


def extracted(name: str, data: str, args: argparse.Namespace
              ) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all images, from the cache if they are there."""
    kept = args.cache / f'{name}_{data}.npz'
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            model, cfg = classifier(name, args, Path(folder))
            splits = ['train', 'val']
            if data == 'digits':
                splits = ['train']
                cfg.train_dataloader.dataset = dict(type='Digits', split='all')
                cfg.test_dataloader.dataset.pipeline = [
                    dict(type='TimmTestTransform', crop_pct=1.),
                    dict(type='PackInputs')]
            stores = [extract(model, cfg, split, Path(folder) / split)
                      for split in splits]
            np.savez(kept, x=np.concatenate([s.features for s in stores]),
                     y=np.concatenate([s.labels for s in stores]))
    with np.load(kept) as found:
        return found['x'], found['y']


def stored(x: np.ndarray, y: np.ndarray, folder: Path) -> FeatureStore:
    """Features as a store."""
    writer = StoreWriter(folder, *x.shape, 'float32', len(x))
    writer.prepare(y, [str(i) for i in range(len(y))], {})
    writer.write(0, x)
    return writer.finish(dict(batch_size=len(x)), in_tuple=True)


def logistic(train: tuple, val: tuple) -> float:
    """Top-1 of scikit-learn's logistic regression."""
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        {'logisticregression__C': [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.]},
        cv=StratifiedKFold(5, shuffle=True, random_state=0))
    return 100 * search.fit(*train).score(*val)


def sgd(x: torch.Tensor, y: torch.Tensor, rates: torch.Tensor,
        batch: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``(G, K, C)`` and biases of DINOv2's linear classifiers."""
    torch.manual_seed(0)
    weight = torch.randn(1, int(y.max()) + 1, x.shape[1]) * .01
    parts = [weight.repeat(len(rates), 1, 1).requires_grad_(),
             torch.zeros(len(rates), weight.shape[1], requires_grad=True)]
    moving = [torch.zeros_like(part) for part in parts]
    count = EPOCHS * (len(x) // batch)
    for step in range(count):
        if step % (len(x) // batch) == 0:
            order = torch.randperm(len(x)).split(batch)
        rows = order[step % (len(x) // batch)]
        logits = torch.einsum('nc,gkc->gnk', x[rows], parts[0])
        logits = logits + parts[1][:, None]
        loss = functional.cross_entropy(
            logits.flatten(0, 1), y[rows].repeat(len(rates)), reduction='sum')
        found = torch.autograd.grad(loss / len(rows), parts)
        now = rates * (1 + np.cos(np.pi * step / count)) / 2
        with torch.no_grad():
            for part, move, grad in zip(parts, moving, found, strict=True):
                move.mul_(.9).add_(grad)
                part.sub_(move * now.view(-1, *[1] * (part.ndim - 1)))
    return parts[0].detach(), parts[1].detach()


def dinov2(train: tuple, val: tuple) -> float:
    """Top-1 of DINOv2's linear evaluation, the rate chosen on folds."""
    rates = torch.tensor(DINOV2_RATES) * 128 / 256

    def top1(train: tuple, val: tuple, rates: torch.Tensor) -> torch.Tensor:
        x, y, others, truth = map(torch.from_numpy, (*train, *val))
        weight, bias = sgd(x, y, rates)
        scores = torch.einsum('nc,gkc->gnk', others, weight) + bias[:, None]
        return 100 * (scores.argmax(2) == truth).float().mean(1)

    x, y = train
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(x, y)
    figures = sum(top1((x[a], y[a]), (x[b], y[b]), rates) for a, b in folds)
    best = figures.nan_to_num(0).argmax()
    return float(top1(train, val, rates[best:best + 1]))


def figures(name: str, data: str, split: int, args: argparse.Namespace,
            every: bool) -> dict:
    """Top-1 of all ways on a split, from the cache if they are there.

    Args:
        name: The network.
        data: One of :data:`DATA`.
        split: Number of the split.
        args: The flags.
        every: Whether to choose settings, too.
    """
    kept = args.cache / f'{name}_{data}_{split}{"" if every else "_rank"}.json'
    if kept.exists():
        return json.loads(kept.read_text(encoding='utf-8'))
    x, y = extracted(name, data, args)
    train, val = list(StratifiedShuffleSplit(
        args.splits, train_size=SHARE[data], random_state=0).split(x, y))[
            split]
    pair = (x[train], y[train]), (x[val], y[val])
    found = dict(network=name, data=data, split=split, val=len(val))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model, cfg = classifier(name, args, folder)
        stores = [stored(*rows, folder / part) for part, rows in
                  zip(('train', 'val'), pair, strict=True)]
        ways = {key: {'': one} for key, one in DEFAULTS.items()}
        if every:
            ways['grid'] = grid(DINOV2_RATES, None, [True, False])
        else:
            ways = dict(probe=ways['probe'])
        for key, settings in ways.items():
            result = probe(copy.deepcopy(model), cfg, *stores,
                           epochs=EPOCHS, settings=settings)
            found[key] = result.metrics['accuracy/top1']
            if key == 'grid':
                found['chosen'] = {k: result.setting[k]
                                   for k in ('lr', 'norm')}
    found['logistic'] = logistic(*pair)
    if every:
        found['dinov2'] = dinov2(*pair)
    print(found, flush=True)
    kept.write_text(json.dumps(found), encoding='utf-8')
    return found


def table(rows: list[dict]) -> list[dict]:
    """Means over the splits, with their standard errors."""
    found = []
    for name, data in dict.fromkeys((row['network'], row['data'])
                                    for row in rows):
        few = [row for row in rows
               if (row['network'], row['data']) == (name, data)]
        keys = [*DEFAULTS, 'grid', 'logistic', 'dinov2']
        mean = {key: float(np.mean([row[key] for row in few]))
                for key in keys}
        better = max(('logistic', 'dinov2'), key=mean.get)
        error = {key: float(np.std([
            row[key] - row[better] for row in few], ddof=1)
            / np.sqrt(len(few))) for key in keys}
        found.append(dict(network=name, data=data, splits=len(few), mean=mean,
                          better=better, error_of_difference=error,
                          error=float(np.std([row[better] for row in few],
                                             ddof=1) / np.sqrt(len(few)))))
        print(name, data, f'{better} {mean[better]:.2f}', ', '.join(
            f'{key} {mean[key]:.2f} ({mean[key] - mean[better]:+.2f} +- '
            f'{error[key]:.2f})' for key in keys), flush=True)
    return found


def agreement(rows: list[dict]) -> dict:
    """Kendall's tau of two rankings of networks, also without ties."""
    pairs, left_out = [], 0
    for one, other in itertools.combinations(rows, 2):
        low, high = sorted((one, other), key=lambda row: row['probe'])
        if (interval('top1', low['probe'], low['val'])['high']
                >= interval('top1', high['probe'], high['val'])['low']):
            left_out += 1
        else:
            pairs.append(1 if high['logistic'] > low['logistic'] else -1)
    found = dict(
        data=rows[0]['data'], networks=len(rows), pairs=len(pairs),
        left_out=left_out, tau=float(np.mean(pairs)),
        tau_of_all=float(kendalltau([row['probe'] for row in rows], [
            row['logistic'] for row in rows]).statistic))
    print(found, flush=True)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--weights', type=Path, required=True,
                        help='folder of <network>.safetensors')
    parser.add_argument('--images', type=Path, required=True,
                        help='folder of images, with train and val')
    parser.add_argument('--cache', type=Path, required=True,
                        help='folder for features and figures')
    parser.add_argument('--networks', nargs='+', default=[
        f'tf_efficientnet_lite{i}' for i in range(3)])
    parser.add_argument('--rank', nargs='*', default=[])
    parser.add_argument('--splits', type=int, default=6)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    logging.disable(logging.INFO)
    rows = [figures(name, data, split, args, True)
            for split in range(args.splits)  # some of all come first
            for name in args.networks for data in DATA]
    means = table(rows)
    ranked = []
    if args.rank:
        for data in DATA:
            few = [row for row in rows if row['data'] == data
                   and not row['split']]
            few += [figures(name, data, 0, args, False)
                    for name in args.rank]
            ranked.append(dict(agreement(few), rows=few))
    if args.out:
        paired.write(args.out, [*rows, *means, *ranked])


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    main()
