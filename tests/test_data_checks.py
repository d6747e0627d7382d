"""What people's folders and lists hold, and what would spoil a training."""

import os
import shutil
import warnings

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from PIL import Image

from commands import OURS, last_line, python
from folders import folder_options, images, write_folder
from gap_plugin.config_writer import NewConfig, write_config
from gap_plugin.datasets import checks
from gap_plugin.datasets.checks import (
    check_datasets,
    check_folder,
    check_images,
)


@pytest.fixture
def split(tmp_path):
    """``train/`` and ``val/`` of two classes, each image another one."""
    root = tmp_path / 'images'
    for i, side in enumerate(('train', 'val')):
        for j, name in enumerate('ab'):
            images(root / side / name, 3, start=100 * i + 10 * j)
    return root


def written(root, tmp_path, **options):
    """The config of a folder, and what each of its splits gives."""
    init_default_scope('mmpretrain')
    request = NewConfig('test_resnet', root, out=tmp_path / 'c.py', **options)
    data, _ = write_config(request)
    cfg = Config.fromfile(str(request.path))
    found = {}
    for name in ('train', 'val', 'test'):
        dataset = cfg[f'{name}_dataloader'].dataset
        dataset.pipeline = []
        built = DATASETS.build(dataset)
        assert built.metainfo['classes'] == tuple(data.classes)
        found[name] = [(os.path.relpath(info['img_path'], root),
                        info['gt_label']) for info in map(
                            built.get_data_info, range(len(built)))]
    return found


def quiet(call, *args, **kwargs):
    """A call that warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return call(*args, **kwargs)


def test_any_suffix_that_pillow_reads_is_taken_and_others_are_told(split,
                                                                  tmp_path):
    for name in ('x.webp', 'x.GIF', 'x.tiff', 'x.jfif'):
        kind = 'JPEG' if name == 'x.jfif' else None
        image = Image.new('RGB', (9 + len(name), 9), 'red')
        image.save(split / 'train' / 'a' / name, format=kind)
    for name in ('Thumbs.db', 'a.txt', 'b.txt', 'film.mpg', 'noend'):
        (split / 'train' / 'b' / name).touch()
    shutil.copy(split / 'train' / 'b' / '10.png', split / 'train')
    with pytest.warns(UserWarning) as told:
        found = written(split, tmp_path)
    assert {path for path, _ in found['train']} >= {
        f'train/a/{name}' for name in ('x.webp', 'x.GIF', 'x.tiff', 'x.jfif')}
    (text, ) = {str(w.message) for w in told}
    assert '6 of 16 files under' in text
    assert '.txt 2' in text and '.mpg 1' in text and 'no suffix 1' in text


def test_hidden_folders_and_links_are_not_data(split, tmp_path):
    plain = quiet(written, split, tmp_path)
    one = split / 'train' / 'a' / '0.png'
    for place in (split, split / 'train', split / 'train' / 'a'):
        for name in ('.git', '.ipynb_checkpoints'):
            (place / name).mkdir()
            shutil.copy(one, place / name / 'x.png')
    shutil.copy(one, one.with_name('._0.png'))
    (split / 'train' / 'a' / 'again').symlink_to(split / 'train' / 'a')
    (split / 'train' / 'a' / 'z.png').symlink_to(one)
    shutil.copytree(split / 'train' / 'b', split / 'val' / 'b' / '.old')
    assert quiet(written, split, tmp_path, force=True) == plain
    assert len(plain['train']) == 6 and plain['val'] == plain['test']


@pytest.mark.parametrize('names', [
    ('Train', 'Val', 'TEST'), ('training', 'validation', 'test'),
    ('train', 'valid', 'testing')])
def test_splits_have_the_names_that_people_give_them(names, split, tmp_path):
    images(split / names[2] / 'a', 2, start=50)
    images(split / names[2] / 'b', 1, start=60)
    for old, new in zip(('train', 'val'), names, strict=False):
        (split / old).rename(split / new)
    found = quiet(written, split, tmp_path)
    assert found['train'][0] == (f'{names[0]}/a/0.png', 0)
    assert found['val'][-1] == (f'{names[1]}/b/112.png', 1)
    assert found['test'] == [(f'{names[2]}/a/50.png', 0), (
        f'{names[2]}/a/51.png', 0), (f'{names[2]}/b/60.png', 1)]


def two_splits(root):
    shutil.copytree(root / 'train', root / 'Training')


def only_in_val(root):
    (root / 'val' / 'b').rename(root / 'val' / 'c')


def copied(root):
    shutil.rmtree(root / 'val')
    shutil.copytree(root / 'train', root / 'val')


def linked(root):
    shutil.rmtree(root / 'val')
    (root / 'val').symlink_to(root / 'train')


def two_labels(root):
    (root / 'train' / 'b' / 'x.png').symlink_to(
        root / 'train' / 'a' / '1.png')


def hard_linked(root):
    os.link(root / 'train' / 'a' / '1.png', root / 'val' / 'b' / 'x.png')


def linked_class(root):
    (root / 'train' / 'c').symlink_to(root / 'train' / 'a')


def dataset_in_class(root):
    shutil.move(root / 'train' / 'a', root / 'train' / 'b' / 'Test')
    for path in (root / 'train' / 'b').glob('*.png'):
        path.unlink()


@pytest.mark.parametrize('harm, message', [
    (two_splits, "has Training/ and train/: which one is 'train'"),
    (only_in_val, "'c' of 'val' under .* have no images in 'train'"),
    (copied, "'val' is a copy of 'train' .*val/a/0.png = .*train/a/0.png"),
    (linked, "'val' is a copy of 'train'"),
    (two_labels, "1 images have two labels: '.*a/1.png = .*b/x.png'"),
    (hard_linked, '1 images have two labels: .*a/1.png = .*b/x.png'),
    (linked_class, '3 images have two labels: .*a/0.png = .*c/0.png'),
    (dataset_in_class, "train/b' holds 'Test' alone, and is a dataset"),
])
def test_what_would_spoil_a_training_is_refused(harm, message, split,
                                                tmp_path):
    harm(split)
    with pytest.raises(ValueError, match=message):
        written(split, tmp_path)
    assert not list(tmp_path.glob('c*'))


def lacking(root):
    shutil.rmtree(root / 'val' / 'a')


def same_in_both(root):
    shutil.copy(root / 'train' / 'a' / '1.png', root / 'val' / 'a' / 'x.png')


def other_label(root):
    shutil.copy(root / 'train' / 'a' / '1.png', root / 'train' / 'b' / 'x.png')


def one_picture(root):
    for path in root.rglob('*.png'):
        Image.new('RGB', (9, 9)).save(path)


def a_picture_each(root):
    for path in root.rglob('*.png'):
        Image.new('RGB', (9, 9), dict(a='red', b='blue')[path.parent.name]
                  ).save(path)


def third_folder(root):
    images(root / 'unlabelled' / 'x', 1)


@pytest.mark.parametrize('harm, message', [
    (lacking, "'val' has no images of 'a'"),
    (same_in_both, r"1 of 7 images of 'val' are in 'train', too: "
     "'.*val/a/x.png = .*train/a/1.png'"),
    (other_label, '1 images have a copy of another label: .*a/1.png = '),
    (third_folder, "'unlabelled' beside train/"),
    (one_picture, "6 of 6 images of 'val' are in 'train', too"),
    (a_picture_each, "6 of 6 images of 'val' are in 'train', too"),
])
def test_what_may_deceive_is_told(harm, message, split, tmp_path):
    harm(split)
    with pytest.warns(UserWarning, match=message) as told:
        found = written(split, tmp_path)
    assert len(told) == 1 + (harm is one_picture)
    assert {label for _, label in found['train']} == {0, 1}


def test_a_data_root_one_level_too_high_is_refused(split, tmp_path):
    root = tmp_path / 'all'
    root.mkdir()
    shutil.move(split, root / 'stamps')
    shutil.copytree(root / 'stamps' / 'train', root / 'noval' / 'train')
    text = python(OURS / 'make_config.py', 'test_resnet', '--data-root',
                  root / '.', '--out', tmp_path / 'c.py', ok=False)
    assert f'--data-root {str(root / "noval")!r}' in last_line(text)
    shutil.rmtree(root / 'noval')
    images(root / 'coins' / 'x', 2)  # a class as it should be
    with pytest.raises(ValueError, match="data_root='.*stamps'"):
        written(root, tmp_path)
    shutil.rmtree(root / 'stamps')
    images(root / 'stamps' / 'x' / 'train', 2, start=9)
    images(root / 'test' / 'coins', 2)
    with pytest.raises(ValueError, match="test' holds 'coins' alone, and is "
                                         'a split'):
        written(root, tmp_path)


def test_lists_are_checked_likewise(split, tmp_path):
    def given(train, val):
        for name, lines in (('train', train), ('val', val)):
            (tmp_path / f'{name}.txt').write_text('\n'.join(lines) + '\n')
        return written(split, tmp_path, force=True,
                       train_list=tmp_path / 'train.txt',
                       val_list=tmp_path / 'val.txt')

    train = ['train/a/0.png 0', 'train/a/1.png 0', 'train/b/10.png 1']
    with pytest.raises(ValueError, match='1 images have two labels: .*a/1'):
        given([*train, 'train/a/1.png 1'], ['val/a/100.png 0'])
    with pytest.raises(ValueError, match='1 images have two labels: .*a/1'):
        given(train, ['train/a/1.png 1'])
    with pytest.raises(ValueError, match="'val' is a copy of 'train'"):
        given(train, train)
    with pytest.warns(UserWarning, match="1 of 2 images of 'val' are in "
                      "'train', too: '.*a/1.png'"):
        given(train, ['val/b/110.png 1', 'train/a/1.png 0'])
    given([*train, train[0]], ['val/a/100.png 0', 'val/b/110.png 1'])


def custom(root, **options):
    init_default_scope('mmpretrain')
    return DATASETS.build(dict(
        type='CustomDataset', data_root=str(root), **options))


def test_a_config_written_by_hand_is_checked_as_built(split):
    train, val = (custom(split, data_prefix=side) for side in ('train', 'val'))
    quiet(check_datasets, dict(train=train, val=val))
    with pytest.warns(UserWarning, match="images of 'val' are those of"):
        check_datasets(dict(train=train, val=train))
    shutil.copytree(split / 'train', split / 'copy')
    with pytest.raises(ValueError, match="'val' is a copy of 'train'"):
        check_datasets(dict(train=train, val=custom(
            split, data_prefix='copy')))
    # without it, the host counts the classes of val/ anew
    shutil.rmtree(split / 'val' / 'a')
    with pytest.raises(ValueError, match=r"'val' differ \('a' are in one"):
        check_datasets(dict(train=train, val=custom(
            split, data_prefix='val')))
    with pytest.raises(ValueError, match=r"'val' differ \(they stand in"):
        check_datasets(dict(train=train, val=custom(
            split, data_prefix='train', classes=['b', 'a'])))


def test_what_a_dataset_finds_by_itself_is_checked(split):
    where = split / 'train'
    quiet(check_folder, custom(where), 'train')
    Image.new('RGB', (9, 9)).save(where / 'a' / 'x.webp')
    images(where / 'a' / 'sub', 2, start=80)
    (where / 'a' / 'again').symlink_to(where / 'a' / 'sub')
    with pytest.warns(UserWarning) as told:
        check_folder(custom(where), 'train')
    assert [str(w.message) for w in told] == [
        f'1 of 9 files under {str(where)!r} are passed over: .webp 1',
        f"'train': 10 images under {str(where)!r} are 8 files, some of which "
        'links reach more than once: describe the data by a list.']
    (where / 'a' / 'again').unlink()
    (where / 'a' / 'x.webp').unlink()
    for place in ('a/.thumbs', '.ipynb_checkpoints'):
        images(where / place, 1)
        for dataset in (custom(where), DATASETS.build(dict(
                type='RepeatDataset', times=2, dataset=dict(
                    type='CustomDataset', data_root=str(where))))):
            with pytest.raises(ValueError, match=place.split('/')[-1]):
                check_folder(dataset, 'train')
        shutil.rmtree(where / place)


def test_of_large_data_some_contents_are_compared(monkeypatch):
    asked = []
    monkeypatch.setattr(checks.os.path, 'getsize',
                        lambda path: asked.append(path) or len(asked))
    check_images({side: [(f'{side}/{i}.png', 0) for i in range(1000)]
                  for side in ('train', 'val')}, compared=50)
    assert len(asked) == len(set(asked)) == 100


def test_contents_are_read_only_of_files_of_one_size(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sides = dict(train=[], val=[])
    for i, side in enumerate(['train', 'val'] * 3):
        path = tmp_path / f'{i}.bin'
        # two are of one size, two of one size and piece of the middle
        content = rng.bytes(10_000 if i < 2 else 20_000 + i // 4)
        path.write_bytes(content)
        sides[side].append((str(path), 0))
    body = (tmp_path / '4.bin').read_bytes()
    (tmp_path / '5.bin').write_bytes(b'x' + body[1:])
    read = []
    content = checks._content
    monkeypatch.setattr(checks, '_content',
                        lambda path: read.append(path) or content(path))
    quiet(check_images, sides)
    assert sorted(os.path.basename(p) for p in read) == ['4.bin', '5.bin']
    (tmp_path / '5.bin').write_bytes(body)
    with pytest.warns(UserWarning, match='1 of 3 images'):
        check_images(sides)


@pytest.mark.parametrize('tool', ['train.py', 'linear_probe.py'])
def test_a_command_says_it_ahead_of_the_training(tool, tmp_path):
    write_folder(tmp_path / 'd')
    for name in ('black', 'white'):
        shutil.copytree(tmp_path / 'd' / 'train' / name,
                        tmp_path / 'd' / 'val' / name, dirs_exist_ok=True)
    shutil.copy(tmp_path / 'd' / 'train' / 'black' / 'black_0.png',
                tmp_path / 'd' / 'train' / 'white' / 'white_0.png')
    options = ['--work-dir', tmp_path / 'w', '--cfg-options', *folder_options(
        tmp_path / 'd'), 'model.head.num_classes=2']
    os.unlink(tmp_path / 'd' / 'val' / 'black' / 'black_1.png')
    (tmp_path / 'd' / 'val' / 'black' / 'black_1.png').symlink_to(
        tmp_path / 'd' / 'train' / 'white' / 'white_1.png')
    text = python(OURS / tool, 'configs/image_folder/resnet50.py', *options,
                  *(['--freeze'] if tool == 'linear_probe.py' else []),
                  ok=False)
    assert '1 images have two labels' in last_line(text)
    assert not list((tmp_path / 'w').rglob('*.pth'))
    assert not (tmp_path / 'w' / 'features').exists()
