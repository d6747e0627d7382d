"""Which of MMPretrain's own tools work, with this package and without.

On the MMPretrain that is installed: each of its scripts, unmodified, and its
Python interface, with ``TimmFeatureBackbone`` and, with none of this package,
``TIMMBackbone``. What ``python SCRIPT`` does not do, ``python -m
gap_plugin.stock SCRIPT`` is tried for, or our script of the same name.
vis_cam.py needs ``grad-cam`` < 1.5; shape_bias.py, which fetches pictures from
the network, is left out.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mmengine
import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

import paired
from gap_plugin.host import versions
from gap_plugin.stock import scripts

TOOLS = Path(__file__).parents[1]
NETWORK = 'resnet10t'
MODELS = dict(
    ours=dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name=NETWORK),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type='LinearHead', num_classes=2)),
    stock=dict(
        type='ImageClassifier',
        backbone=dict(type='TIMMBackbone', model_name=NETWORK),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=512)))


@dataclass
class Side:
    """One of the two models, in a folder of its own."""

    name: str
    folder: Path

    def config(self, name: str = 'config', **changes: object) -> str:
        """Write a config and give its path."""
        pipeline = [dict(type='LoadImageFromFile'),
                    dict(type='Resize', scale=(64, 64)),
                    dict(type='PackInputs')]

        def loader(split: str) -> dict:
            return dict(
                batch_size=4, num_workers=0, persistent_workers=False,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='CustomDataset', data_prefix=split,
                             data_root=str(self.folder / 'data'),
                             pipeline=pipeline))

        cfg = Config(dict(
            default_scope='mmpretrain', model=MODELS[self.name],
            train_dataloader=loader('train'), val_dataloader=loader('val'),
            test_dataloader=loader('val'), val_cfg=dict(), test_cfg=dict(),
            val_evaluator=dict(type='Accuracy'),
            test_evaluator=dict(type='Accuracy'),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(
                type='SGD', lr=0.01, weight_decay=1e-4)),
            param_scheduler=[dict(type='CosineAnnealingLR', end=1,
                                  convert_to_iter_based=True)],
            log_level='INFO',
            auto_scale_lr=dict(base_batch_size=4),
            default_hooks=dict(
                timer=dict(type='IterTimerHook'),
                logger=dict(type='LoggerHook', interval=1),
                param_scheduler=dict(type='ParamSchedulerHook'),
                checkpoint=dict(type='CheckpointHook', interval=1),
                visualization=dict(type='VisualizationHook')),
            visualizer=dict(type='UniversalVisualizer', vis_backends=[
                dict(type='LocalVisBackend')])))
        if self.name == 'ours':
            cfg.custom_imports = dict(imports=['gap_plugin'])
        cfg.merge_from_dict(changes)
        path = self.folder / f'{name}.py'
        cfg.dump(path)
        return str(path)

    def path(self, name: str) -> str:
        """A file or folder of this side."""
        return str(self.folder / name)


def fill(folder: Path) -> None:
    """A few images in two classes."""
    rng = np.random.default_rng(0)
    # what test.py --out writes, of which each side's own may be missing
    mmengine.dump([
        dict(sample_idx=i, num_classes=2, gt_label=torch.tensor([i // 8]),
             pred_label=torch.tensor([i % 2]),
             pred_score=torch.eye(2)[i % 2]) for i in range(16)
    ], folder / 'results.pkl')
    for split in ('train', 'val'):
        for i, label in enumerate('ab'):
            place = folder / 'data' / split / label
            place.mkdir(parents=True)
            for j in range(8):
                pixels = rng.integers(0, 120, (70, 70, 3)) + 100 * i
                Image.fromarray(pixels.astype(np.uint8)).save(
                    place / f'{j}.png')


def python(side: Side, *arguments: object) -> str:
    """Run a command; give '' or the last line of its error."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=side.folder,
        env={**os.environ, 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'})
    if done.returncode == 0:
        return ''
    lines = [line.strip() for line in done.stderr.splitlines()
             if line.strip()]
    named = [line for line in lines if 'Error: ' in line]
    return (named or lines or ['no message'])[-1][:160]


def script(name: str, arguments: Callable[[Side], list],
           processes: int = 1) -> Callable:
    """A row that runs a script of MMPretrain."""

    def run(side: Side) -> tuple[str, str]:
        given = arguments(side)
        start = [] if processes == 1 else [
            '-m', 'torch.distributed.run', '--standalone',
            '--nproc_per_node', processes]
        error = python(side, *start, scripts()[name], *given)
        if not error:
            return 'ok', ''
        if side.name == 'ours':
            if processes == 1 and not python(
                    side, '-m', 'gap_plugin.stock', name, *given):
                return 'ok, by gap_plugin.stock', error
            own = TOOLS / f'{name}.py'
            if own.exists() and not python(side, *start, own, *given):
                return f'ok, by tools/{name}.py', error
        return 'fails', error

    return run


def code(text: str) -> Callable:
    """A row that runs Python."""

    def run(side: Side) -> tuple[str, str]:
        start = 'import gap_plugin\n' if side.name == 'ours' else ''
        image = side.path('data/val/a/0.png')
        cfg = side.config('api')
        error = python(
            side, '-c', f'{start}from mmpretrain import *\n'
            f'from mmpretrain.apis import *\nconfig = {cfg!r}\n'
            f'weights = {side.path("w/epoch_1.pth")!r}\nimage = {image!r}\n'
            f'gallery = {side.path("data/val/a")!r}\n{text}')
        return ('fails', error) if error else ('ok', '')

    return run


def train(name: str, *flags: str, processes: int = 1,
          **changes: object) -> Callable:
    """A row that trains a changed config."""
    return script('train', lambda s: [
        s.config(name, **changes), '--work-dir', s.path(name), *flags],
        processes)


def after(first: Callable, second: Callable) -> Callable:
    """A row of two steps."""

    def run(side: Side) -> tuple[str, str]:
        result = first(side)
        return second(side) if result[0] != 'fails' else result

    return run


def trained(name: str, *flags: object) -> Callable:
    """A row whose script takes a config, a checkpoint and flags."""
    return script(name, lambda s: [
        s.config(), s.path('w/epoch_1.pth'),
        *(f(s) if callable(f) else f for f in flags)])


def log(side: Side) -> str:
    """The log of the first training."""
    return str(next((side.folder / 'w').glob('*/vis_data/scalars.json')))


def hook(kind: str, **settings: object) -> dict:
    """A change of config."""
    return {'custom_hooks': [dict(type=kind, **settings)]}


ROWS: dict[str, Callable] = {
    'train.py --cfg-options': train(
        'options', '--cfg-options', 'train_cfg.max_epochs=1'),
    'train.py --resume': after(train('resume'), train(
        'resume', '--resume', **{'train_cfg.max_epochs': 2})),
    'train.py --amp, no GPU': train('amp', '--amp'),
    'train.py --auto-scale-lr': train('scale', '--auto-scale-lr'),
    'train.py, 2 processes, no GPU': train(
        'torchrun', '--launcher', 'pytorch', processes=2),
    'FlexibleRunner': train('flexible', runner_type='FlexibleRunner',
                            strategy=dict(type='SingleDeviceStrategy'),
                            env_cfg=dict()),
    'test.py': trained('test', '--work-dir', lambda s: s.path('t')),
    'test.py --out': trained('test', '--out', lambda s: s.path('r.pkl')),
    'test.py --tta': trained('test', '--tta'),
    'test.py --show-dir': trained('test', '--show-dir',
                                  lambda s: s.path('shown')),
    'kfold-cross-valid.py': script('kfold-cross-valid', lambda s: [
        s.config(), '--num-splits', 2, '--work-dir', s.path('k')]),
    'kfold-cross-valid.py --resume': script('kfold-cross-valid', lambda s: [
        s.config(), '--num-splits', 2, '--work-dir', s.path('k'),
        '--resume']),
    **{
        f'browse_dataset.py, {mode}': script(
            'browse_dataset', lambda s, mode=mode: [
                s.config(), '-o', s.path(f'b{mode}'), '--not-show', '-n', 2,
                '-m', mode])
        for mode in ('original', 'transformed', 'pipeline', 'concat')
    },
    'vis_scheduler.py': script('vis_scheduler', lambda s: [
        s.config(), '--not-show', '--save-path', s.path('s.png')]),
    **{
        f'vis_tsne.py, {stage}': script('vis_tsne', lambda s, stage=stage: [
            s.config(), '--checkpoint', s.path('w/epoch_1.pth'),
            '--work-dir', s.path('v'), '--vis-stage', stage, '--perplexity',
            3, '--n-iter', 250, '--device', 'cpu'])
        for stage in ('backbone', 'neck', 'pre_logits')
    },
    'vis_cam.py': script('vis_cam', lambda s: [
        s.path('data/val/a/0.png'), s.config(), s.path('w/epoch_1.pth'),
        '--save-path', s.path('cam.png')]),
    'analyze_logs.py': script('analyze_logs', lambda s: [
        'plot_curve', log(s), '--keys', 'accuracy/top1', '--out',
        s.path('curve.png')]),
    'analyze_results.py': script('analyze_results', lambda s: [
        s.config(), s.path('results.pkl'), '--out-dir', s.path('a'),
        '--topk', 2]),
    'eval_metric.py': script('eval_metric', lambda s: [
        s.path('results.pkl'), '--metric', 'type=Accuracy', 'topk=1']),
    'confusion_matrix.py, results': script('confusion_matrix', lambda s: [
        s.config(), s.path('results.pkl'), '--out', s.path('m.pkl')]),
    'confusion_matrix.py, checkpoint': trained(
        'confusion_matrix', '--out', lambda s: s.path('m.pkl')),
    'get_flops.py': script('get_flops', lambda s: [
        s.config(), '--shape', 64]),
    'print_config.py': script('print_config', lambda s: [s.config()]),
    'verify_dataset.py': script('verify_dataset', lambda s: [
        s.config(), '--out-path', s.path('broken.log')]),
    'publish_model.py': script('publish_model', lambda s: [
        s.path('w/epoch_1.pth'), s.path('p.pth')]),
    'reparameterize_model.py': after(
        train('rep', **{'model.backbone.model_name': 'repvgg_a0',
                        'model.head.in_channels': 1280}),
        script('reparameterize_model', lambda s: [
            s.path('rep.py'), s.path('rep/epoch_1.pth'), s.path('d.pth')])),
    '_base_ = mmpretrain::': script('print_config', lambda s: [
        inherit(s)]),
    'get_model, checkpoint': code('get_model(config, pretrained=weights)'),
    'inference_model': code('inference_model(get_model(config), image)'),
    'ImageClassificationInferencer': code(
        'ImageClassificationInferencer(config, pretrained=weights)(image)'),
    'FeatureExtractor': code(
        'FeatureExtractor(get_model(config))(image, stage="neck")'),
    'ImageRetrievalInferencer': code(
        'from mmengine import Config\nc = Config.fromfile(config)\n'
        'c.model = dict(type="ImageToImageRetriever", prototype=gallery,\n'
        '    image_encoder=[c.model.backbone, dict(type="GAPNeck" if\n'
        '    "Timm" in c.model.type else "GlobalAveragePooling")])\n'
        'ImageRetrievalInferencer(c, prototype=gallery)(image)'),
    'EMAHook': train('ema', **hook('EMAHook')),
    'PreciseBNHook': train('precise', **hook('PreciseBNHook',
                                             num_samples=8)),
    'ClassNumCheckHook': train('classes', **hook('ClassNumCheckHook')),
    'SwitchRecipeHook': train('switch', **hook('SwitchRecipeHook', schedule=[
        dict(action_epoch=1, loss=dict(type='LabelSmoothLoss',
                                       label_smooth_val=0.1))])),
    'layer-wise learning rates': train('layers', **{
        'optim_wrapper.constructor':
            'LearningRateDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg': dict(layer_decay_rate=0.5)}),
    'compile=True': train('compiled', **{
        'compile': dict(backend='aot_eager')}),
}


def inherit(side: Side) -> str:
    """A config that begins at one of MMPretrain's."""
    path = side.folder / 'inherits.py'
    path.write_text("_base_ = ['mmpretrain::_base_/default_runtime.py']\n",
                    encoding='utf-8')
    return str(path)


def measure(name: str, wanted: str) -> dict[str, tuple[str, str]]:
    """All rows of one side."""
    with tempfile.TemporaryDirectory() as folder:
        side = Side(name, Path(folder))
        fill(side.folder)
        results = {'train.py': train('w')(side)}
        # which later rows take, on both sides
        for row, run in ROWS.items():
            if wanted not in row:
                continue
            results[row] = run(side)
            print(f'{name:5} {row:34} {": ".join(filter(None, results[row]))}',
                  flush=True)
        return results


def main() -> None:
    """Measure both sides and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', help='JSON file for the outcomes')
    parser.add_argument('--rows', default='', help='those whose name has it')
    args = parser.parse_args()
    with ThreadPoolExecutor(2) as pool:
        ours, stock = pool.map(
            partial(measure, wanted=args.rows), MODELS)
    print('| tool | TimmFeatureBackbone | TIMMBackbone |\n|---|---|---|')
    for row, (outcome, _) in ours.items():
        print(f'| {row} | {outcome} | {stock[row][0]} |')
    if args.out:
        paired.write(args.out, [
            dict(tool=row, ours=ours[row], stock=stock[row], **versions())
            for row in ours])


if __name__ == '__main__':
    main()
