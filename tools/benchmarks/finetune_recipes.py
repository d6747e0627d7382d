"""Fine-tuning as ``new-config`` writes it, against others' defaults.

On few images: 480 of 10 classes of a folder (48 a class, drawn by the seed
from all of its images), or 240 of scikit-learn's digits; the figure is the
top-1 of the *last* epoch on 500 others, so that no choice of an epoch blurs
it. All sides are given the same files, the same weights, timm's preprocessing,
batches of 32 and the same number of epochs (fastai: one more, frozen, ahead).

written     the config of new-config, trained by MMEngine's runner
from-probe  the same, with --from-probe
before      the same, with AdamW at 1e-4 for all, as it was written before
fastai      fine_tune of vision_learner by its defaults: its head, a frozen
            epoch at 2e-3, then one cycle at 1e-5 (body) and 1e-3 (head), Adam
fastai-ours the same schedule with our neck and head
timm        train.py by its defaults: SGD at 0.1 for 256 images a step, decay
            2e-5, 5 epochs of warm-up, label smoothing

The last three are plain loops.
"""

import argparse
import copy
import json
import logging
import math
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from PIL import Image
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional

import paired
from gap_plugin.cli.first_probe import start_from_probe
from gap_plugin.config_writer import NewConfig, write_config
from gap_plugin.datasets import bind_pipeline, source_of

BATCH = 32
#: What was written before.
BEFORE = dict(
    optim_wrapper=dict(
        _delete_=True,
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        clip_grad=dict(max_norm=5.0)))


def lists(data: str, folder: Path, seed: int) -> tuple[Path, Path, Path]:
    """Root of the images, and lists of those to train and to validate on."""
    if data == 'digits':
        root, found, per_class = folder, [], 24
        images, labels = load_digits(return_X_y=True)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            pixels = (image.reshape(8, 8) * 255 / 16).round()
            Image.fromarray(pixels.astype(np.uint8)).save(root / f'{i}.png')
            found.append((f'{i}.png', int(label)))
    else:
        root, per_class = Path(data), 48
        files = sorted(root.rglob('*.png'))
        names = sorted({path.parent.name for path in files})
        found = [(path.relative_to(root).as_posix(),
                  names.index(path.parent.name)) for path in files]
    random.Random(seed).shuffle(found)
    sides: dict[str, list] = dict(train=[], val=[])
    for name, label in found:
        side = 'train' if sum(known == label for _, known in sides['train']
                              ) < per_class else 'val'
        sides[side].append((name, label))
    paths = []
    for side, rows in sides.items():
        paths.append(folder / f'{side}.txt')
        paths[-1].write_text(''.join(
            f'{name} {label}\n' for name, label in rows[:500]),
            encoding='utf-8')
    return root, *paths


def config(args: argparse.Namespace, folder: Path, epochs: int,
           seed: int, data: str) -> Config:
    """What ``new-config`` writes for the images."""
    root, train, val = lists(data, folder, seed)
    path = folder / 'config.py'
    write_config(NewConfig(
        args.network, root, train_list=train, val_list=val,
        checkpoint=Path(args.weights), img_size=args.size, epochs=epochs,
        batch_size=BATCH, workers=0, seed=seed, out=path))
    cfg = Config.fromfile(str(path))
    cfg.model.backbone.channels_last = True  # for speed
    if data == 'digits':  # 2 and 5 are mirror images
        flipped = cfg.train_dataloader.dataset.pipeline
        flipped[1].update(hflip=0.)
    cfg.merge_from_dict(dict(
        train_cfg=dict(val_interval=epochs), work_dir=str(folder / 'work'),
        default_hooks=dict(checkpoint=None),
        experiment_name=folder.name))
    return cfg


def by_runner(cfg: Config, options: dict, probed: bool) -> float:
    """Train by MMEngine's runner, as ``gap-plugin train`` does."""
    cfg.merge_from_dict(options, allow_list_keys=True)
    if probed:
        start_from_probe(cfg, argparse.Namespace(
            config=cfg.filename, amp=False, launcher='none',
            cfg_options=options))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return float(runner.message_hub.get_scalar(
        'val/accuracy/top1').current())


class Images:
    """The same images for a plain loop."""

    def __init__(self, cfg: Config, model: nn.Module, seed: int) -> None:
        self.preprocess = model.data_preprocessor
        self.train, self.val = (
            Runner.build_dataloader(cfg[f'{side}_dataloader'], seed=seed)
            for side in ('train', 'val'))
        for loader in (self.train, self.val):
            bind_pipeline(loader.dataset, source_of(model))

    def batches(self, train: bool) -> Iterator[tuple]:
        """Normalised images, and their labels."""
        for batch in self.train if train else self.val:
            batch = self.preprocess(batch, train)
            yield batch['inputs'], torch.cat(
                [sample.gt_label for sample in batch['data_samples']])

    def top1(self, network: nn.Module) -> float:
        """On the validation images, in percent."""
        network.eval()
        with torch.no_grad():
            right = torch.cat([network(x).argmax(1) == y
                               for x, y in self.batches(False)])
        return 100 * right.float().mean().item()


class Concat(nn.Module):
    """fastai's ``AdaptiveConcatPool2d``, of the backbone's tuple."""

    def forward(self, maps: tuple) -> torch.Tensor:
        """Pool."""
        x = maps[-1]
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


class Mean(nn.Module):
    """timm's average pooling, of the backbone's tuple."""

    def forward(self, maps: tuple) -> torch.Tensor:
        """Pool."""
        return maps[-1].mean((2, 3))


def fastai_head(width: int, classes: int) -> nn.Module:
    """``create_head`` with its defaults and initialisation."""
    head = nn.Sequential(
        Concat(), nn.BatchNorm1d(2 * width), nn.Dropout(0.25),
        nn.Linear(2 * width, 512, bias=False), nn.ReLU(),
        nn.BatchNorm1d(512), nn.Dropout(0.5),
        nn.Linear(512, classes, bias=False))
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return head


def cosine(start: float, end: float, share: float) -> float:
    """Fastai's ``SchedCos``."""
    return start + (1 - math.cos(math.pi * share)) * (end - start) / 2


def one_cycle(share: float, top: float, warm: float,
              div: float) -> tuple[float, float]:
    """Rate and momentum of fastai's ``fit_one_cycle``."""
    if share < warm:
        at = share / warm
        return cosine(top / div, top, at), cosine(.95, .85, at)
    at = (share - warm) / (1 - warm)
    return cosine(top, top / 1e5, at), cosine(.85, .95, at)


def fastai(images: Images, body: nn.Module, head: nn.Module,
           epochs: int) -> nn.Module:
    """``Learner.fine_tune(epochs)`` by its defaults."""
    network = nn.Sequential(body, head)
    norm = {id(p) for m in network.modules() if isinstance(
        m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()}
    plain = norm | {id(p) for n, p in network.named_parameters()
                    if n.endswith('bias')}
    groups = [dict(params=[p for p in part.parameters()
                           if (id(p) in plain) is without], new=new,
                   weight_decay=0. if without else 0.01)
              for part, new in ((body, False), (head, True))
              for without in (False, True)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(.9, .99), eps=1e-5)
    for rates, count, warm, div, frozen in (
            ((2e-4, 2e-3), 1, .99, 25., True),
            ((1e-5, 1e-3), epochs, .3, 5., False)):
        for p in body.parameters():  # norms are trained while frozen
            p.requires_grad_(not frozen or id(p) in norm)
        steps, step = count * len(images.train), 0
        for _ in range(count):
            network.train()
            for x, y in images.batches(True):
                for group in optimizer.param_groups:
                    group['lr'], momentum = one_cycle(
                        step / steps, rates[group['new']], warm, div)
                    group['betas'] = (momentum, .99)
                functional.cross_entropy(network(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
    return network


def timm_loop(images: Images, body: nn.Module, head: nn.Module,
              epochs: int) -> nn.Module:
    """``train.py`` by its defaults."""
    network = nn.Sequential(body, head)
    optimizer = create_optimizer_v2(
        network, opt='sgd', lr=0.1 * BATCH / 256, momentum=0.9,
        weight_decay=2e-5)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched='cosine', num_epochs=epochs, warmup_epochs=5,
        warmup_lr=1e-5, min_lr=0.)
    for epoch in range(epochs):
        network.train()
        scheduler.step(epoch)
        for x, y in images.batches(True):
            functional.cross_entropy(
                network(x), y, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network


def by_loop(cfg: Config, recipe: str, epochs: int,
            seed: int) -> float:
    """Train by a plain loop."""
    init_default_scope('mmpretrain')
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = MODELS.build(copy.deepcopy(cfg.model))
    images = Images(cfg, model, seed)
    body, classes = model.backbone, model.head.num_classes
    (width, ) = body.out_channels
    if recipe == 'timm':
        network = timm_loop(images, body, nn.Sequential(
            Mean(), nn.Linear(width, classes)), epochs)
    else:
        head = fastai_head(width, classes) if recipe == 'fastai' else (
            nn.Sequential(Mean(), model.neck[1], model.head.fc))
        network = fastai(images, body, head, epochs)
    return images.top1(network)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--weights', required=True,
                        help='of the network, as timm names them')
    parser.add_argument('--network', default='tf_efficientnet_lite0')
    parser.add_argument('--data', nargs='+', default=['digits'],
                        help="'digits', or a folder of class folders")
    parser.add_argument('--recipes', nargs='+', default=[
        'written', 'before', 'fastai', 'timm'])
    parser.add_argument('--epochs', type=int, nargs='+', default=[12])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--options', type=json.loads, default={},
                        help='of the config, as JSON, for "written"')
    parser.add_argument('--out', help='JSON file for the raw figures, to '
                        'which they are added')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    rows = paired.read(args.out) if args.out else []
    for data in args.data:
        for epochs in args.epochs:
            for recipe in args.recipes:
                found = []
                for seed in args.seeds:
                    with tempfile.TemporaryDirectory() as folder:
                        cfg = config(args, Path(folder), epochs, seed, data)
                        start = time.perf_counter()
                        if recipe in ('written', 'from-probe', 'before'):
                            top1 = by_runner(
                                cfg, BEFORE if recipe == 'before' else
                                args.options, recipe == 'from-probe')
                        else:
                            top1 = by_loop(cfg, recipe, epochs, seed)
                        MMLogger._instance_dict.clear()  # and its files
                    rows.append(dict(
                        data=Path(data).name, recipe=recipe, epochs=epochs,
                        seed=seed, options=args.options, size=args.size,
                        network=args.network,
                        seconds=round(time.perf_counter() - start, 1),
                        top1=top1))
                    found.append(top1)
                    print({key: value for key, value in rows[-1].items()
                           if key != 'options'}, flush=True)
                    if args.out:
                        paired.write(args.out, rows)
                spread = statistics.stdev(found) if len(found) > 1 else 0
                print(f'{Path(data).name} {recipe} {epochs} epochs: '
                      f'{statistics.mean(found):.2f} +- {spread:.2f}',
                      flush=True)


if __name__ == '__main__':
    main()
