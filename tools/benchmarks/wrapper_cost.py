"""What the backbone costs over the bare timm network, paired in one run.

Forward, forward and backward, and construction, in time; forward and
backward in peak memory, each side in fresh processes.
"""

import argparse
import gc
import statistics
from collections.abc import Callable

import timm
import torch

import paired

NETWORKS = ('resnet50', 'eca_nfnet_l0', 'convnext_tiny',
            'mobilenetv3_small_100', 'vit_small_patch16_224',
            'swin_tiny_patch4_window7_224')


def build_ours(name: str) -> torch.nn.Module:
    """The backbone of this plugin."""
    from gap_plugin import TimmFeatureBackbone
    return TimmFeatureBackbone(name, out_feature='forward_features')


def build_bare(name: str) -> torch.nn.Module:
    """The network as timm builds it, called by its own method."""
    model = timm.create_model(name, num_classes=0)
    model.forward = model.forward_features
    return model


BUILDERS = dict(ours=build_ours, bare=build_bare)


def make_step(side: str, name: str, batch: int, backward: bool) -> Callable:
    """A step of one side.

    Args:
        side: ``'ours'`` or ``'bare'``.
        name: The network.
        batch: Number of images.
        backward: Whether to train, else to infer.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    model = BUILDERS[side](name).to(device).train(backward)
    size = timm.get_pretrained_cfg(name).input_size
    x = torch.randn(batch, *size, device=device)

    def step() -> None:
        if not backward:
            with torch.no_grad():
                model(x)
            return
        y = model(x)
        (y[0] if isinstance(y, tuple) else y).sum().backward()
        model.zero_grad()

    return step


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=NETWORKS)
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--memory-runs', type=int, default=3)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    rows = []
    print(f'{"network":32}{"forward":>9}{"+backward":>11}{"memory":>9}'
          f'{"construct":>11}{"first":>7}')
    for name in args.networks:
        row = dict(network=name, batch=args.batch)
        # the first of a process traces the network, the others look it up
        build_bare(name)
        row['first_construction'] = paired.paired_ratio(
            lambda n=name: build_ours(n), lambda n=name: build_bare(n), 1, 0)
        first = row['first_construction']
        for backward in (False, True):
            steps = [make_step(side, name, args.batch, backward)
                     for side in ('ours', 'bare')]
            row['backward' if backward else 'forward'] = paired.paired_ratio(
                *steps, args.rounds)
        row['construction'] = paired.paired_ratio(
            lambda n=name: build_ours(n), lambda n=name: build_bare(n),
            args.rounds)
        memory = {side: [
            paired.peak_memory(make_step, side, name, 4 * args.batch, True)
            for _ in range(args.memory_runs)] for side in BUILDERS}
        row['memory'] = dict(
            memory, ratio=statistics.median(memory['ours']) /
            statistics.median(memory['bare']))
        rows.append(row)
        gc.collect()
        print(f'{name:32}{row["forward"]["ratio"]:9.3f}'
              f'{row["backward"]["ratio"]:11.3f}'
              f'{row["memory"]["ratio"]:9.3f}'
              f'{row["construction"]["ratio"]:11.3f}'
              f'{first["ratio"]:7.2f}', flush=True)
    for key in ('forward', 'backward', 'memory', 'construction'):
        ratios = [row[key]['ratio'] for row in rows]
        print(f'{key}: median {statistics.median(ratios):.3f}, '
              f'largest {max(ratios):.3f}')
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
