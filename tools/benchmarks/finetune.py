"""Fine-tuning by our config against a loop as in timm's training script.

Images/s and peak memory of training steps on the same synthetic batches: on
one side MMEngine's runner with its hooks, on the other timm's network with its
own classifier, cross entropy, AdamW. Both take uint8 images and normalise
them. With a GPU, ``--amp float16`` or ``bfloat16`` and ``--channels-last``.
``--formats`` compares that loop with itself: in channels-last, and there in
bfloat16.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable

import timm
import torch
from torch import nn

import paired

CLASSES = 100


def images(name: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and labels."""
    generator = torch.Generator().manual_seed(0)
    size = timm.get_pretrained_cfg(name).input_size
    return (torch.randint(0, 256, (batch, *size), dtype=torch.uint8,
                          generator=generator),
            torch.randint(0, CLASSES, (batch, ), generator=generator))


def ours(name: str, batch: int, amp: str | None, last: bool) -> Callable:
    """A step of a runner."""
    from mmengine.runner import Runner
    from mmpretrain.structures import DataSample
    from torch.utils.data import Dataset

    import gap_plugin  # noqa: F401, registers the parts

    class One(Dataset):
        """One image, as often as is asked for."""

        def __len__(self) -> int:
            return batch

        def __getitem__(self, index: int) -> dict:
            return {}

    logging.disable(logging.WARNING)
    optim = dict(optimizer=dict(type='AdamW', lr=1e-4))
    if amp == 'bfloat16':
        optim['type'] = 'Bfloat16OptimWrapper'
    elif amp:
        optim.update(type='AmpOptimWrapper', loss_scale='dynamic')
    runner = Runner(
        model=dict(
            type='TimmFeatureClassifier',
            backbone=dict(type='TimmFeatureBackbone', model_name=name,
                          out_feature='forward_features', channels_last=last),
            neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
            head=dict(type='LinearHead', num_classes=CLASSES)),
        work_dir=tempfile.mkdtemp(), default_scope='mmpretrain',
        train_dataloader=dict(
            batch_size=batch, dataset=One(),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=1), optim_wrapper=optim,
        default_hooks=dict(checkpoint=None))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.call_hook('before_run')
    runner.call_hook('before_train')
    runner.call_hook('before_train_epoch')
    runner.model.train()
    pixels, labels = images(name, batch)
    data = dict(inputs=pixels, data_samples=[
        DataSample().set_gt_label(int(label)) for label in labels])

    def step() -> None:
        runner.train_loop.run_iter(0, data)

    return step


def theirs(name: str, batch: int, amp: str | None, last: bool) -> Callable:
    """A step of timm's loop."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = timm.create_model(name, num_classes=CLASSES).to(device).train()
    if last:
        model.to(memory_format=torch.channels_last)
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key], device=device).view(3, 1, 1) * 255
                 for key in ('mean', 'std'))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device, enabled=amp == 'float16')
    dtype = getattr(torch, amp) if amp else None
    pixels, labels = images(name, batch)

    def step() -> None:
        x = pixels.to(device, non_blocking=True).float().sub(mean).div(std)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        target = labels.to(device, non_blocking=True)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = criterion(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def formats(name: str, batch: int, rounds: int) -> dict:
    """Ratios of timm's loop in channels-last, and there in bfloat16."""
    found = dict(network=name, batch=batch)
    for key, one, other in (
            ('channels_last', (None, True), (None, False)),
            ('bfloat16', ('bfloat16', True), (None, True))):
        pair = paired.paired_ratio(theirs(name, batch, *one),
                                   theirs(name, batch, *other), rounds)
        found.update({key: pair['ratio'], f'{key}_ratios': pair['ratios']})
    print(found, flush=True)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=[
        'resnet50', 'vit_small_patch16_224'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--memory-runs', type=int, default=1)
    parser.add_argument('--amp', choices=['float16', 'bfloat16'])
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--formats', action='store_true')
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    rows = ([formats(name, args.batch, args.rounds)
             for name in args.networks] if args.formats else [])
    for name in () if args.formats else args.networks:
        settings = (name, args.batch, args.amp, args.channels_last)
        # images/s, so that more is better: theirs over ours
        found = paired.paired_ratio(theirs(*settings), ours(*settings),
                                    args.rounds)
        memory = {
            side.__name__: [paired.peak_memory(side, *settings)
                            for _ in range(args.memory_runs)]
            for side in (ours, theirs)
        }
        ratio = (statistics.median(memory['ours']) /
                 statistics.median(memory['theirs']))
        print(f'{name}: {args.batch / found["theirs_s"]:.2f} images/s '
              f'against {args.batch / found["ours_s"]:.2f} of timm, '
              f'ratio {found["ratio"]:.3f}; peak memory {ratio:.3f}',
              flush=True)
        rows.append(dict(network=name, batch=args.batch, amp=args.amp,
                         channels_last=args.channels_last,
                         throughput_ratio=found['ratio'],
                         ratios=found['ratios'],
                         ours_s=found['theirs_s'], timm_s=found['ours_s'],
                         memory=dict(memory, ratio=ratio)))
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
