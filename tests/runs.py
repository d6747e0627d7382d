"""Short runs of MMEngine's runner on a few images."""

import itertools

import numpy as np
from mmengine.runner import Runner
from PIL import Image

_count = itertools.count()

PIPELINE = [dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]


def model(network='test_resnet', **backbone):
    """A classifier of ten digits, as a config."""
    return dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name=network,
                      **{'img_size': 32, **backbone}),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type='LinearHead', num_classes=10))


def data(split, count=32, batch_size=8, pipeline=PIPELINE):
    """A dataloader of the first digits of a split, as a config."""
    return dict(
        batch_size=batch_size, num_workers=0, persistent_workers=False,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='Digits', split=split, indices=count,
                     pipeline=pipeline))


def runner(work_dir, epochs=1, **changes):
    """A runner whose settings can each be replaced."""
    settings = dict(
        model=model(), train_dataloader=data('train'),
        val_dataloader=data('test'),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        randomness=dict(seed=0), default_scope='mmpretrain',
        visualizer=dict(type='UniversalVisualizer',
                        vis_backends=[dict(type='LocalVisBackend')]))
    settings.update(changes)
    return Runner(work_dir=str(work_dir),
                  experiment_name=f'run_{next(_count)}', **settings)


def images(folder, count, start=0):
    """Noise, as PNG files."""
    rng = np.random.default_rng(start)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        pixels = rng.integers(0, 200, (40, 40, 3)) + 50 * (start > 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')


BOX = """<object><name>{name}</name><difficult>0</difficult><bndbox>
<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"""


def voc(root):
    """A few images laid out as PASCAL VOC is."""
    rng = np.random.default_rng(0)
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    names = [f'{i:06}' for i in range(8)]
    for i, name in enumerate(names):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / 'JPEGImages' / f'{name}.jpg')
        objects = ''.join(BOX.format(name=n) for n in
                          (['cat', 'dog'], ['dog'], ['person'])[i % 3])
        (root / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation>{objects}</annotation>')
    for split in ('trainval', 'test'):
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text(
            '\n'.join(names))
    return root
