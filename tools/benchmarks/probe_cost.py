"""A 100-epoch linear probe against one evaluation of the same images.

The digits that scikit-learn ships, in memory; or, with ``--images N``, N files
of 500 x 400 pixels, cut out of the photographs that scikit-image ships.

Whole processes in turn: ``linear_probe.py`` (extraction, training, validation
after every epoch, the final checkpoint) and ``test.py`` on the same images, by
eager torch in torch's own layout. For digits, once, two epochs of frozen
training (``lr_mult=0``) by MMPretrain's own tool, extrapolated to as many
epochs; for files, where the time of a first probe goes, and a bare loop over
the same files: timm's loader with as many workers, no store, and the same
engine; on a GPU, timm's network in channels-last.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import paired

TOOLS = Path(__file__).parents[1]


class Run(NamedTuple):
    """A whole process: seconds, those of all cores, and what it printed."""

    seconds: float
    cpu_s: float
    text: str


def run(script: Path, *args: object) -> Run:
    """Run a whole process."""
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', str(script), *map(str, args)],
        capture_output=True, text=True, check=False, cwd=TOOLS.parent,
        env={**os.environ, 'HF_HUB_OFFLINE': '1'})
    if done.returncode:
        raise ValueError(f'{script.name} failed: {done.stderr[-500:]}')
    spent = os.times()
    return Run(time.perf_counter() - start,
               spent.children_user - before.children_user
               + spent.children_system - before.children_system,
               done.stdout + done.stderr)


@cache
def whole(name: str) -> Any:
    """A photograph that scikit-image ships."""
    from PIL import Image
    from skimage import data
    return Image.fromarray(getattr(data, name)())


def photograph(folder: Path, i: int) -> None:
    """A file of a part of one of four photographs."""
    import numpy as np
    rng = np.random.default_rng(i)
    name = ('astronaut', 'cat', 'coffee', 'rocket')[i % 4]
    photo = whole(name)
    left, top = (int(rng.integers(0, side // 4)) for side in photo.size)
    path = folder / name / f'{i}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.crop((left, top, left + 3 * photo.width // 4,
                top + 3 * photo.height // 4)).resize((500, 400)).save(
                    path, quality=90)


def photographs(folder: Path, count: int) -> None:
    """Files of images."""
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(photograph, folder), range(count),
                      chunksize=50))


def config_of(network: str, folder: Path, weights: str | None,
              workers: int) -> Path:
    """A config for the files, and ``all.txt``, all of them."""
    config = folder / 'config.py'
    run(TOOLS / 'make_config.py', network, '--data-root', folder / 'images',
        *(['--checkpoint', weights] if weights else []), '--recipe', 'linear',
        '--workers', workers, '--out', config)
    (folder / 'all.txt').write_text(''.join(
        (folder / f'config_{split}.txt').read_text(encoding='utf-8')
        for split in ('train', 'val')), encoding='utf-8')
    return config


def timed(where: object, name: str, seconds: Counter, key: str) -> None:
    """Count what a function of a module or class takes."""
    work = getattr(where, name)

    def counted(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            seconds[key] += time.perf_counter() - start
    setattr(where, name, counted)


def split_up(args: list[str]) -> None:
    """A probe that tells where its time goes."""
    start = time.perf_counter()
    from torch.utils.data import dataloader

    import gap_plugin.cli.probe as command
    from gap_plugin.features import FixedPart, engines, extraction
    seconds = Counter(importing=time.perf_counter() - start)
    timed(command, 'probe', seconds, 'training')
    timed(command, 'build_model', seconds, 'building')
    timed(extraction, 'fastest', seconds, 'starting the engine')
    timed(engines.Engine, '__call__', seconds, 'network')
    timed(FixedPart, 'images', seconds, 'preprocessing')
    timed(extraction.Extraction, '__call__', seconds, 'passes')
    timed(dataloader._BaseDataLoaderIter, '__next__', seconds,
          'waiting for decoders')
    command.main(args)
    print(json.dumps(dict(seconds, whole=time.perf_counter() - start)))


def bare(network: str, folder: str, batch: str, workers: str,
         amp: str = '') -> None:
    """The loop that a person writes by hand."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader, resolve_data_config

    from gap_plugin.features import fastest
    cuda = torch.cuda.is_available()
    device = torch.device('cuda' if cuda else 'cpu')
    model = timm.create_model(network, num_classes=0).eval().to(device)
    data = resolve_data_config(model=model)
    files = create_dataset('', root=Path(folder, 'images'))
    start = time.perf_counter()
    loader = create_loader(
        files, data['input_size'], int(batch), use_prefetcher=cuda,
        interpolation=data['interpolation'], mean=data['mean'],
        std=data['std'], crop_pct=data['crop_pct'], num_workers=int(workers),
        pin_memory=cuda, device=device)
    engine, found = None, []
    if cuda:
        engine = model.to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(
            device.type, torch.bfloat16, enabled=bool(amp)):
        for images, _ in loader:
            if cuda:
                images = images.contiguous(memory_format=torch.channels_last)
            elif engine is None:
                engine = fastest(model, images, count=len(files))
            found.append(engine(images))
        torch.cat(found).cpu()
    print(json.dumps(dict(passes=time.perf_counter() - start,
                          engine=getattr(engine, 'name', 'timm'))))


def last(text: str) -> dict:
    """The figures that a process of this script has printed."""
    return json.loads(re.findall(r'^{.*}$', text, re.M)[-1])


def pairs(config: object, options: list[str], every: str, folder: Path,
          args: argparse.Namespace) -> Iterator[dict]:
    """A probe and a test in turn, whole processes."""
    for i in range(args.rounds):
        work = folder / str(i)

        def probe(work: Path = work) -> Run:
            return run(TOOLS / 'linear_probe.py', config, '--freeze',
                       '--epochs', args.epochs, '--work-dir', work,
                       '--cfg-options', *options)

        def test(work: Path = work) -> Run:
            weights = work / 'linear_probe.pth'
            if not weights.exists():
                weights = folder / '0' / 'linear_probe.pth'
            return run(TOOLS / 'test.py', config, weights,
                       '--work-dir', work, '--cfg-options', *options, every)

        order: tuple[Callable, ...] = (
            (probe, test) if i % 2 == 0 else (test, probe))
        found = {f.__name__: f() for f in order}
        top1 = re.findall(r'^accuracy/top1 ([\d.]+)$',
                          found['probe'].text, re.M)[-1]
        row = dict(probe_s=found['probe'].seconds,
                   test_s=found['test'].seconds,
                   ratio=found['probe'].seconds / found['test'].seconds,
                   probe_cpu_s=found['probe'].cpu_s,
                   test_cpu_s=found['test'].cpu_s, top1=float(top1))
        if args.again:  # the features are there: what the epochs alone cost
            row['again_s'] = probe().seconds
        print(row, flush=True)
        yield row
        if i:
            shutil.rmtree(work)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config',
                        default='configs/digits/tf_efficientnet_lite0.py')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--again', action='store_true',
                        help='a further probe as well')
    parser.add_argument('--images', type=int, metavar='N',
                        help='files in place of the digits')
    parser.add_argument('--network', default='tf_efficientnet_lite0',
                        help='for files')
    parser.add_argument('--workers', type=int, default=2, help='for files')
    parser.add_argument('--passes', action='store_true',
                        help='files, without the pairs with test.py')
    parser.add_argument('--amp', action='store_true',
                        help='mixed precision of passes over files')
    parser.add_argument('--weights', help='of the network; random for files '
                        'if there are none')
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    options = [
        'model.backbone.channels_last=False',
        f'model.backbone.img_size={args.size}',
        *(f'{s}_dataloader.batch_size={args.batch}'
          for s in ('train', 'val', 'test'))
    ]
    rows: list[dict] = []

    def keep(row: dict) -> None:
        rows.append(dict(row, network=args.network, images=args.images))
        if args.out:  # minutes each: what there is is kept
            paired.write(args.out, rows)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.images:
            photographs(folder / 'images', args.images)
            config = config_of(args.network, folder, args.weights,
                               args.workers)
            if not args.weights:
                options.append('model.backbone.pretrained=False')
            for row in () if args.passes else pairs(
                    config, options, 'test_dataloader.dataset.ann_file='
                    f'{folder / "all.txt"}', folder, args):
                keep(row)
            amp = ['--amp'] if args.amp else []
            for i in range(args.rounds):
                parts = last(run(
                    Path(__file__), 'split_up', config, '--freeze', '--epochs',
                    args.epochs, '--work-dir', folder / f'parts_{i}', *amp,
                    '--cfg-options', *options).text)
                loop = last(run(
                    Path(__file__), 'bare', args.network, folder, args.batch,
                    args.workers, *amp).text)
                row = dict(parts=parts, bare=loop, amp=args.amp,
                           workers=args.workers,
                           ratio_to_bare=parts['passes'] / loop['passes'])
                print(row, flush=True)
                keep(row)
        else:
            import mmpretrain
            for row in pairs(args.config, options,
                             'test_dataloader.dataset.split=all', folder,
                             args):
                keep(row)
            seconds = run(
                Path(mmpretrain.__file__).parent / '.mim' / 'tools'
                / 'train.py', args.config, '--work-dir', folder / 'f',
                '--cfg-options', *options, 'train_cfg.max_epochs=2',
                'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0'
            ).seconds
            median = statistics.median(row['probe_s'] for row in rows)
            keep(dict(two_epochs_s=seconds,
                      times_faster=seconds / 2 * args.epochs / median))
            print(rows[-1])
    for key in ('ratio', 'ratio_to_bare'):
        found = [row[key] for row in rows if key in row]
        if found:
            print('median', key, statistics.median(found))


if __name__ == '__main__':
    if sys.argv[1:2] == ['split_up']:
        split_up(sys.argv[2:])
    elif sys.argv[1:2] == ['bare']:
        bare(*sys.argv[2:])
    else:
        main()
