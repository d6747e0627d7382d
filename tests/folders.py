"""Folders of images, as people have them."""

import numpy as np
from PIL import Image


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


def write_folder(root):
    """Two classes, black and white, four images each."""
    for split in ('train', 'val'):
        for label, name in ((0, 'black'), (255, 'white')):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(4 if split == 'train' else 2):
                height = 40 + i if split == 'train' else 50 + i
                image = np.full((height, 50, 3), label, np.uint8)
                Image.fromarray(image).save(folder / f'{name}_{i}.png')


def folder_options(images, network='test_resnet'):
    return [
        f'train_dataloader.dataset.data_root={images}',
        f'val_dataloader.dataset.data_root={images}',
        f'test_dataloader.dataset.data_root={images}',
        'train_dataloader.batch_size=4',
        'train_dataloader.num_workers=1', 'val_dataloader.num_workers=1',
        'test_dataloader.num_workers=1', 'model.backbone.pretrained=False',
        f'model.backbone.model_name={network}'
    ]
