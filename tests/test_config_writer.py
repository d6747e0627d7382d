"""``backbones.py`` and ``make_config.py``, as a user calls them."""

import json
import re

import numpy as np
import pytest
import timm
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image

from commands import OURS, STOCK, last_line, python, reported, validated
from folders import write_folder
from gap_plugin import TimmFeatureBackbone
from networks import full


def facts(*args, **kwargs):
    return python(OURS / 'backbones.py', *args, **kwargs)


def written(*args, **kwargs):
    return python(OURS / 'make_config.py', *args, **kwargs)


def json_of(text):
    """The document in an output that other lines may precede."""
    start = re.search(r'^[\[{]$', text, re.MULTILINE).start()
    return json.JSONDecoder().raw_decode(text[start:])[0]


def test_facts_of_a_network_are_those_of_timm():
    found = json_of(facts('eca_nfnet_l1', '--json'))
    cfg = timm.get_pretrained_cfg('eca_nfnet_l1')
    model = timm.create_model('eca_nfnet_l1', num_classes=0)
    assert found['parameters'] == sum(p.numel() for p in model.parameters())
    assert found['final_conv'] and found['out_channels'] == 3072
    assert found['input_size'] == [256, 256]
    assert found['test_input_size'] == [320, 320]
    assert (found['interpolation'], found['crop_pct']) == (
        cfg.interpolation, cfg.crop_pct)
    assert found['mean'] == list(cfg.mean)
    assert found['licence'] == cfg.license
    assert found['source'] == cfg.hf_hub_id
    assert [level['channels'] for level in found['levels']] == [
        info['num_chs'] for info in model.feature_info]


def test_multiply_adds_of_a_known_network():
    # 4.089 G in the tables of torchvision and timm, classifier (2 M) included
    found = json_of(facts('resnet50', '--json'))
    assert found['multiply_adds'] == pytest.approx(4.087e9, rel=1e-3)
    assert '4.087 G at 224 x 224' in facts('resnet50')


def test_networks_are_filtered():
    names = facts('test_*', '--max-params', '0.4')
    listed = {line.split()[0] for line in names.splitlines()
              if line.startswith('test_')}
    assert listed == {
        name for name in timm.list_models('test_*') if sum(
            p.numel() for p in timm.create_model(
                name, num_classes=0).parameters()) <= 4e5}
    large = json_of(facts('convnext_base*', '--pretrained', '--min-size',
                          '384', '--json'))
    assert large and all(
        min(row['input_size']) >= 384 and '.' in row['name']
        for row in large)


@pytest.mark.parametrize('args, part', [
    (['resnet5o'], 'resnet50'),
    (['nothing*'], 'loosen'),
    (['resnet*', '--min-size', '9999'], 'loosen'),
])
def test_a_network_that_is_not_there_ends_in_one_line(args, part):
    line = last_line(facts(*args, ok=False))
    assert ': error: ' in line and part in line


@pytest.fixture
def split(tmp_path):
    root = tmp_path / 'images'
    write_folder(root)
    return root


@pytest.fixture
def unsplit(tmp_path):
    root = tmp_path / 'one'
    for label, name in enumerate(('black cat', 'white')):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((40 + i, 50, 3), 255 * label, np.uint8)
                            ).save(root / name / f'{name} {i}.png')
    return root


@pytest.fixture
def weights(tmp_path):
    """Weights in place of those of the hub."""
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(0)
    path = tmp_path / 'weights.safetensors'
    save_file(timm.create_model('test_resnet').state_dict(), str(path))
    return path


@pytest.mark.parametrize('recipe', ['linear', 'finetune'])
@pytest.mark.parametrize('tools', [OURS, full(STOCK)], ids=['ours', 'stock'])
def test_written_config_trains_at_once(tools, recipe, unsplit, weights,
                                       tmp_path):
    out = tmp_path / 'config.py'
    text = written('test_resnet', '--data-root', unsplit, '--recipe', recipe,
                   '--checkpoint', weights, '--epochs', '2', '--workers',
                   '0', '--out', out)
    assert '2 classes: black cat, white' in text
    assert last_line(text) == f'gap-plugin train {out}'
    log = python(tools / 'train.py', out, '--work-dir', tmp_path / 'w')
    result = python(tools / 'test.py', out, tmp_path / 'w' / 'epoch_2.pth',
                    '--work-dir', tmp_path / 'w', '--show-dir',
                    tmp_path / 'shown')
    assert reported(result) == validated(log)
    assert len(list((tmp_path / 'shown').glob('*.png'))) == 4
    cfg = Config.fromfile(str(out))
    frozen = cfg.model.backbone.get('frozen_stages', -1)
    assert frozen == ('all' if recipe == 'linear' else -1)


def test_split_is_made_by_the_seed(unsplit, tmp_path):
    def lists(seed, name):
        written('test_resnet', '--data-root', unsplit, '--out',
                tmp_path / f'{name}.py', '--seed', seed, '--val-share', '0.3')
        return [(tmp_path / f'{name}_{side}.txt').read_text().splitlines()
                for side in ('train', 'val')]

    train, val = lists(0, 'a')
    assert (len(train), len(val)) == (14, 6)
    assert not set(train) & set(val)
    assert [line.rsplit(' ', 1)[1] for line in val] == ['0'] * 3 + ['1'] * 3
    assert lists(0, 'b') == [train, val]
    assert lists(1, 'c') != [train, val]


def test_split_folder_and_lists_give_the_same_data(split, tmp_path):
    written('test_resnet', '--data-root', split, '--out', tmp_path / 'a.py')
    for side in ('train', 'val'):
        (tmp_path / f'{side}.txt').write_text(''.join(
            f'{p.relative_to(split).as_posix()} {int(p.parent.name > "c")}\n'
            for p in sorted((split / side).rglob('*.png'))))
    (tmp_path / 'names.txt').write_text('black\nwhite\n')
    written('test_resnet', '--data-root', split, '--train-list',
            tmp_path / 'train.txt', '--val-list', tmp_path / 'val.txt',
            '--classes', tmp_path / 'names.txt', '--out', tmp_path / 'b.py')
    init_default_scope('mmpretrain')
    found = []
    for name in 'ab':
        cfg = Config.fromfile(str(tmp_path / f'{name}.py'))
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        assert dataset.CLASSES == ('black', 'white')
        found.append(sorted(
            (info['img_path'], int(info['gt_label']))
            for info in map(dataset.get_data_info, range(len(dataset)))))
    assert found[0] == found[1] and len(found[0]) == 8


@pytest.mark.parametrize('name, count, shape', [
    ('cifar10', 10, (32, 32, 3)), ('cifar100', 100, (32, 32, 3)),
    ('mnist', 10, (28, 28)), ('fashion-mnist', 10, (28, 28)),
    ('imagenet', 1000, None)])
def test_known_datasets_are_wired(name, count, shape, tmp_path):
    out = tmp_path / 'config.py'
    written('test_resnet', '--data-root', tmp_path, '--dataset', name,
            '--out', out)
    cfg = Config.fromfile(str(out))
    init_default_scope('mmpretrain')
    assert cfg.val_dataloader.dataset.type in DATASETS
    cfg.model.backbone.pretrained = False
    cfg.model.data_preprocessor = cfg.get('data_preprocessor')
    model = MODELS.build(cfg.model)
    assert model.head.num_classes == count
    # the host's CIFAR is RGB already, files are loaded as BGR
    assert model.data_preprocessor.to_rgb is (name == 'imagenet')
    if shape is None:
        return
    image = np.zeros(shape, np.uint8)
    data = dict(img=image, gt_label=3, img_shape=image.shape[:2])
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        packed = dict(data)
        for step in loader.dataset.pipeline:
            packed = TRANSFORMS.build(step)(packed)
        batch = dict(inputs=[packed['inputs']] * 2,
                     data_samples=[packed['data_samples']] * 2)
        assert len(model.test_step(batch)) == 2


def test_network_without_weights_is_told(split, tmp_path):
    name = next(n for n in timm.list_models()
                if not timm.get_pretrained_cfg(n).has_weights)
    out = tmp_path / 'config.py'
    line = last_line(written(name, '--data-root', split, '--out', out,
                             '--recipe', 'linear', ok=False))
    assert '--checkpoint' in line and not out.exists()
    text = written(name, '--data-root', split, '--out', out)
    assert 'from scratch' in text
    assert 'no pretrained weights' in out.read_text()
    assert 'pretrained' not in Config.fromfile(str(out)).model.backbone
    assert TimmFeatureBackbone  # the name is one that it takes


def empty(root):
    (root / 'train' / 'grey').mkdir()


def no_images(root):
    for path in root.rglob('*.png'):
        path.unlink()


def one_class(root):
    for side in ('train', 'val'):
        for path in (root / side / 'white').iterdir():
            path.unlink()
        (root / side / 'white').rmdir()


def unreadable(root):
    (root / 'train' / 'white' / 'white_1.png').write_bytes(b'no image')


def no_val(root):
    (root / 'val').rename(root / 'test')


@pytest.mark.parametrize('harm, part', [
    (empty, "'grey'"), (no_images, 'no images'), (one_class, "'black' alone"),
    (unreadable, 'white_1.png'), (no_val, 'train/ alone')])
def test_bad_folder_is_named_and_nothing_written(harm, part, split,
                                                 tmp_path):
    harm(split)
    out = tmp_path / 'config.py'
    line = last_line(written('test_resnet', '--data-root', split, '--out',
                             out, ok=False))
    assert ': error: ' in line and part in line
    assert not out.exists()


@pytest.mark.parametrize('flags, part', [
    (['--data-root', 'nowhere'], 'not a folder'),
    (['--data-root', '.', '--val-share', '1'], '--val-share'),
    (['--data-root', '.', '--batch-size', '1'], '--batch-size'),
    (['--data-root', '.', '--train-list', 'a.txt'], 'belong together'),
    (['--data-root', '.', '--checkpoint', 'no.pth'],
     "'no.pth' is not a file"),
    (['--data-root', '.', '--out', 'config.txt'], '.py'),
])
def test_bad_flags_end_in_one_line(flags, part):
    line = last_line(written('test_resnet', *flags, ok=False))
    assert ': error: ' in line and part in line


@pytest.mark.parametrize('text, part', [
    ('a.png\n', 'line 1'), ('', 'lists no images'),
    ('train/black/black_0.png 0\ntrain/white/white_0.png 2\n', "'1' have no"),
    ('train/black/black_0.png 0\nnot/there.png 1\n', 'there.png'),
])
def test_bad_lists_are_named(text, part, split, tmp_path):
    (tmp_path / 'train.txt').write_text(text)
    (tmp_path / 'val.txt').write_text('val/black/black_0.png 0\n')
    line = last_line(written(
        'test_resnet', '--data-root', split, '--train-list',
        tmp_path / 'train.txt', '--val-list', tmp_path / 'val.txt', '--out',
        tmp_path / 'c.py', ok=False))
    assert ': error: ' in line and part in line


def test_config_is_not_overwritten_unasked(unsplit, tmp_path):
    out = tmp_path / 'config.py'
    (tmp_path / 'config_val.txt').write_text('precious')
    args = ('test_resnet', '--data-root', unsplit, '--out', out)
    line = last_line(written(*args, ok=False))
    assert '--force' in line and 'config_val.txt' in line
    assert (tmp_path / 'config_val.txt').read_text() == 'precious'
    assert not out.exists()
    written(*args, '--force')
    assert out.exists()
