"""Training steps on a GPU: our backbone, bare timm, and ``TIMMBackbone``.

Forward and backward of the last map, the three in turn: in float32, under
autocast to bfloat16, and that in channels-last.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from mmpretrain.registry import MODELS

import gap_plugin  # noqa: F401, registers the parts
import paired

SIDES = ('ours', 'timm', 'TIMMBackbone')
NETWORKS = ('resnet50', 'vit_small_patch16_224', 'convnext_tiny')
PRECISIONS = ((None, False), (torch.bfloat16, False), (torch.bfloat16, True))


def make_step(side: str, name: str, x: torch.Tensor,
              dtype: torch.dtype | None, last: bool) -> Callable:
    """A step of one side."""
    if side == 'ours':
        model = run = MODELS.build(dict(
            type='TimmFeatureBackbone', model_name=name,
            out_feature='forward_features', channels_last=last))
    elif side == 'timm':
        model = timm.create_model(name, num_classes=0)
        run = model.forward_features
    else:
        model = run = MODELS.build(dict(
            type='TIMMBackbone', model_name=name, pretrained=False))
    model.cuda()
    model.train()
    if last and side != 'ours':
        model.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast('cuda', dtype, enabled=dtype is not None):
            y = run(x)
        (y[-1] if isinstance(y, tuple) else y).float().mean().backward()
        model.zero_grad()

    return step


def measure(name: str, dtype: torch.dtype | None, last: bool, batch: int,
            rounds: int) -> dict:
    """Seconds and bytes of a step of each side."""
    x = torch.randn(batch, *timm.get_pretrained_cfg(name).input_size,
                    device='cuda')
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    steps, peak = {}, {}
    for side in SIDES:
        steps[side] = make_step(side, name, x, dtype, last)
        steps[side]()
        paired.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[side]()
        peak[side] = torch.cuda.max_memory_allocated() - before
    times = {side: [] for side in SIDES}
    for i in range(3 + rounds):
        for side in SIDES if i % 2 else reversed(SIDES):
            paired.synchronize()
            start = time.perf_counter()
            steps[side]()
            paired.synchronize()
            times[side].append(time.perf_counter() - start)
    times = {side: found[3:] for side, found in times.items()}
    return dict(
        network=name, amp=str(dtype), channels_last=last, batch=batch,
        seconds={side: statistics.median(found)
                 for side, found in times.items()}, peak=peak,
        **{f'throughput_over_{side}': statistics.median(
            b / a for a, b in zip(times['ours'], times[side], strict=True))
           for side in SIDES[1:]})


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=NETWORKS)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=11)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    rows = []
    for name in args.networks:
        for dtype, last in PRECISIONS:
            row = measure(name, dtype, last, args.batch, args.rounds)
            rows.append(row)
            print(f'{name} {dtype} {"NHWC" if last else "NCHW"}: '
                  f'{args.batch / row["seconds"]["ours"]:.0f} images/s, '
                  f'{row["throughput_over_timm"]:.3f} of timm, '
                  f'{row["throughput_over_TIMMBackbone"]:.3f} of '
                  'TIMMBackbone', flush=True)
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
