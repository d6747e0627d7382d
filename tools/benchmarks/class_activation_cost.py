"""Class activation maps against the forward that gives the logits alone.

Neck and head are folded anew at each call, as ``class_activation_map(model,
inputs, classes)`` does; paired in one run.
"""

import argparse
import time
from collections.abc import Callable

import torch
from mmpretrain.registry import MODELS

import paired
from gap_plugin import class_activation_map

#: Network, number of classes, how many of them have a map.
CASES = (
    ('tf_efficientnet_lite0', 10, 10), ('tf_efficientnet_lite0', 1000, 5),
    ('tf_efficientnet_lite0', 1000, 1000), ('resnet18', 10, 10),
    ('resnet18', 1000, 1000), ('deit_tiny_patch16_224', 10, 10),
    ('convnext_atto', 1000, 1000))


def make_sides(name: str, classes: int, shown: int,
               batch: int) -> tuple[Callable, Callable]:
    """Maps of a batch, and its logits."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = MODELS.build(
        dict(
            type='TimmFeatureClassifier',
            backbone=dict(type='TimmFeatureBackbone', model_name=name),
            neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
            head=dict(type='LinearHead', num_classes=classes))
    ).to(device).eval()
    inputs = torch.randn(batch, 3, *model.backbone.image_size, device=device)

    @torch.no_grad()
    def logits() -> torch.Tensor:
        return model(inputs)

    chosen = None if shown == classes else list(range(shown))
    return lambda: class_activation_map(model, inputs, chosen), logits


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=25)
    parser.add_argument('--cpu-time', action='store_true', help='count CPU '
                        'time, on a machine that others use')
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    rows = []
    for name, classes, shown in CASES:
        row = paired.paired_ratio(
            *make_sides(name, classes, shown, args.batch), args.rounds,
            clock=time.process_time if args.cpu_time else time.perf_counter)
        rows.append(dict(network=name, classes=classes, maps=shown,
                         batch=args.batch, **row))
        print(f'{name:24}{classes:6}{shown:6}{row["ratio"]:8.3f}'
              f'{1000 * row["ours_s"]:9.1f} ms', flush=True)
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
