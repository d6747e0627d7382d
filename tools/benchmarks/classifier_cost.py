"""A training step of ``TimmFeatureClassifier`` against ``ImageClassifier``.

The same parts in both, paired in one run: what is filled in at build time
must cost nothing later.
"""

import argparse
from collections.abc import Callable

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import gap_plugin  # noqa: F401
import paired

NETWORKS = ('test_resnet', 'resnet18', 'vit_tiny_patch16_224')


def make_steps(name: str, batch: int) -> tuple[Callable, Callable]:
    """A step of ours and of the stock classifier, on the same modules."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    ours = MODELS.build(
        dict(
            type='TimmFeatureClassifier',
            backbone=dict(type='TimmFeatureBackbone', model_name=name),
            neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
            head=dict(type='LinearHead', num_classes=10))).to(device).train()
    stock = ImageClassifier(
        ours.backbone, ours.neck, ours.head,
        data_preprocessor=ours.data_preprocessor).to(device).train()
    batch = dict(
        inputs=[torch.randint(0, 256, (3, *ours.backbone.image_size),
                              dtype=torch.uint8) for _ in range(batch)],
        data_samples=[DataSample().set_gt_label(i % 10)
                      for i in range(batch)])

    def step(model: torch.nn.Module) -> None:
        data = model.data_preprocessor(batch, training=True)
        model(**data, mode='loss')['loss'].backward()
        model.zero_grad()

    return lambda: step(ours), lambda: step(stock)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=NETWORKS)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=25)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        row = paired.paired_ratio(*make_steps(name, args.batch), args.rounds)
        rows.append(dict(network=name, batch=args.batch, **row))
        print(f'{name:32}{row["ratio"]:8.3f}', flush=True)
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
