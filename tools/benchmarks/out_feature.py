"""``final_conv`` against ``forward_features``: a linear probe on an NFNet.

NFNet weights are to be had from a hub only, so that this run trains its own:
``test_nfnet`` on the handwritten digits of five classes, from scratch. Its
pooled features then classify the other five, by logistic regression: once of
the map of ``final_conv``, once of that behind the last activation.
"""

import argparse
import statistics

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

import paired
from gap_plugin import GAPNeck, TimmFeatureBackbone


def images(size: int) -> tuple[torch.Tensor, np.ndarray]:
    """All digits as images, and their labels."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    x = functional.interpolate(x, size=(size, size), mode='bilinear')
    return x.expand(-1, 3, -1, -1), digits.target


def train(x: torch.Tensor, y: torch.Tensor, epochs: int) -> dict:
    """Train a classifier of timm; gives its state dict."""
    model = timm.create_model('test_nfnet', num_classes=5)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for i in range(len(x) // 64):
            batch = order[i * 64:(i + 1) * 64]
            loss = functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
            optimizer.step()
            schedule.step()
    return model.state_dict()


def probe(state: dict, out_feature: str, x: torch.Tensor, y: np.ndarray,
          held: np.ndarray) -> float:
    """Accuracy of a linear probe, 0 to 100."""
    backbone = TimmFeatureBackbone(
        'test_nfnet', out_feature=out_feature, frozen_stages='all').eval()
    backbone.timm_model.load_state_dict(state, strict=False)
    with torch.no_grad():
        (features, ) = GAPNeck()(backbone(x))
    features = StandardScaler().fit(features[~held]).transform(features)
    model = LogisticRegression(max_iter=5000)
    model.fit(features[~held], y[~held])
    return 100 * model.score(features[held], y[held])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--size', type=int, default=32)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    x, y = images(args.size)
    rows = []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        known = np.isin(y, rng.permutation(10)[:5])
        labels = torch.tensor(np.searchsorted(np.unique(y[known]), y[known]))
        state = train(x[known], labels, args.epochs)
        held = rng.random((~known).sum()) < 0.5
        row = {kind: probe(state, kind, x[~known], y[~known], held)
               for kind in ('final_conv', 'forward_features')}
        rows.append(dict(seed=seed, **row))
        print(seed, {k: round(v, 2) for k, v in row.items()}, flush=True)
    for kind in ('final_conv', 'forward_features'):
        values = [row[kind] for row in rows]
        print(f'{kind:18} mean {statistics.mean(values):.2f}, standard '
              f'deviation {statistics.stdev(values):.2f}')
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
