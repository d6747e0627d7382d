"""A 100-epoch linear probe against one evaluation of the same images.

The digits that scikit-learn ships, in memory; or, with ``--images N``, N files
of 500 x 400 pixels, cut out of the photographs that scikit-image ships.

Whole processes in turn: ``linear_probe.py`` (extraction, training, validation
after every epoch, the final checkpoint) and ``test.py`` on the same images;
and, once, two epochs of frozen training (``lr_mult=0``) by MMPretrain's own
tool, extrapolated to as many epochs.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mmpretrain

import paired

TOOLS = Path(__file__).parents[1]
STOCK = Path(mmpretrain.__file__).parent / '.mim' / 'tools'


def run(script: Path, *args: object) -> tuple[float, str]:
    """Seconds and output of a whole process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(script), *map(str, args)],
        capture_output=True, text=True, check=False, cwd=TOOLS.parent,
        env={**os.environ, 'HF_HUB_OFFLINE': '1'})
    if done.returncode:
        raise ValueError(f'{script.name} failed: {done.stderr[-500:]}')
    return time.perf_counter() - start, done.stdout + done.stderr


def photographs(folder: Path, count: int, weights: str) -> Path:
    """A config for files of images, and ``all.txt``, all of them."""
    import numpy as np
    from PIL import Image
    from skimage import data
    rng = np.random.default_rng(0)
    names = ('astronaut', 'cat', 'coffee', 'rocket')
    for i in range(count):
        name = names[i % len(names)]
        photo = Image.fromarray(getattr(data, name)())
        left, top = (int(rng.integers(0, side // 4)) for side in photo.size)
        path = folder / 'images' / name / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + 3 * photo.width // 4,
                    top + 3 * photo.height // 4)).resize((500, 400)).save(
                        path, quality=90)
    config = folder / 'config.py'
    run(TOOLS / 'make_config.py', 'tf_efficientnet_lite0', '--data-root',
        folder / 'images', '--checkpoint', weights, '--recipe', 'linear',
        '--workers', 2, '--out', config)
    (folder / 'all.txt').write_text(''.join(
        (folder / f'config_{split}.txt').read_text(encoding='utf-8')
        for split in ('train', 'val')), encoding='utf-8')
    return config


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config',
                        default='configs/digits/tf_efficientnet_lite0.py')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--images', type=int, metavar='N',
                        help='files in place of the digits')
    parser.add_argument('--weights', help='of tf_efficientnet_lite0')
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    options = [
        f'model.backbone.img_size={args.size}',
        *(f'{s}_dataloader.batch_size={args.batch}'
          for s in ('train', 'val', 'test'))
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        config, every = args.config, 'test_dataloader.dataset.split=all'
        if args.images:
            config = photographs(folder, args.images, args.weights)
            every = f'test_dataloader.dataset.ann_file={folder / "all.txt"}'
        for i in range(args.rounds):
            work = folder / str(i)

            def probe(work: Path = work) -> tuple[float, str]:
                return run(TOOLS / 'linear_probe.py', config, '--freeze',
                           '--epochs', args.epochs, '--work-dir', work,
                           '--cfg-options', *options)

            def test(work: Path = work) -> tuple[float, str]:
                weights = work / 'linear_probe.pth'
                if not weights.exists():
                    weights = folder / '0' / 'linear_probe.pth'
                return run(TOOLS / 'test.py', config, weights,
                           '--work-dir', work, '--cfg-options', *options,
                           every)

            order = (probe, test) if i % 2 == 0 else (test, probe)
            found = {f.__name__: f() for f in order}
            top1 = re.findall(r'^accuracy/top1 ([\d.]+)$',
                              found['probe'][1], re.M)[-1]
            row = dict(probe_s=found['probe'][0], test_s=found['test'][0],
                       ratio=found['probe'][0] / found['test'][0],
                       top1=float(top1))
            # the features are there: what the epochs alone cost
            row['again_s'] = probe()[0]
            print(row, flush=True)
            rows.append(row)
            if args.out:  # minutes each: what there is is kept
                paired.write(args.out, rows)
            if i:
                shutil.rmtree(work)
        if args.images:
            print('median ratio',
                  statistics.median(r['ratio'] for r in rows))
            return
        seconds, text = run(
            STOCK / 'train.py', args.config, '--work-dir', folder / 'f',
            '--cfg-options', *options, 'train_cfg.max_epochs=2',
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0')
    median = statistics.median(row['probe_s'] for row in rows)
    frozen = dict(two_epochs_s=seconds,
                  times_faster=seconds / 2 * args.epochs / median)
    print('median ratio', statistics.median(r['ratio'] for r in rows))
    print(frozen)
    if args.out:
        paired.write(args.out, [*rows, frozen])


if __name__ == '__main__':
    main()
