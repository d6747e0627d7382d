"""A training step with ``frozen_stages='all'`` against an unfrozen one.

Time paired in one run; peak memory of each side in fresh processes.
"""

import argparse
import statistics
from collections.abc import Callable

import timm
import torch

import paired

NETWORKS = ('resnet50', 'convnext_tiny', 'vit_small_patch16_224')


def make_step(frozen: int | str, name: str, batch: int) -> Callable:
    """A training step of a classifier: forward, backward, update."""
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    import gap_plugin  # noqa: F401
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    backbone = MODELS.build(
        dict(
            type='TimmFeatureBackbone',
            model_name=name,
            frozen_stages=frozen))
    (width, ) = backbone.out_channels
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=[dict(type='GAPNeck'),
                  dict(type='BNNeck', in_channels=width)],
            head=dict(type='LinearHead', num_classes=10, in_channels=width)))
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    size = timm.get_pretrained_cfg(name).input_size
    x = torch.randn(batch, *size, device=device)
    samples = [DataSample().set_gt_label(i % 10).to(device)
               for i in range(batch)]

    def step() -> None:
        optimizer.zero_grad()
        model(x, samples, mode='loss')['loss'].backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=NETWORKS)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--memory-runs', type=int, default=3)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    rows = []
    print(f'{"network":32}{"time":>8}{"memory":>8}')
    for name in args.networks:
        steps = [make_step(f, name, args.batch) for f in ('all', -1)]
        row = dict(network=name, batch=args.batch,
                   time=paired.paired_ratio(*steps, args.rounds))
        memory = {
            key: [paired.peak_memory(make_step, frozen, name, args.batch)
                  for _ in range(args.memory_runs)]
            for key, frozen in (('frozen', 'all'), ('unfrozen', -1))
        }
        row['memory'] = dict(
            memory, ratio=statistics.median(memory['frozen']) /
            statistics.median(memory['unfrozen']))
        rows.append(row)
        print(f'{name:32}{row["time"]["ratio"]:8.3f}'
              f'{row["memory"]["ratio"]:8.3f}', flush=True)
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
