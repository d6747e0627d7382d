"""The feature store: exact, complete or absent, and never another one's."""

import errno
import itertools
import json
import os
import re
import resource
import shutil
import signal
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from commands import DIGITS, OURS, call, free_port, last_line, python
from errors import one_line
from gap_plugin.datasets import LoadTimmImage
from gap_plugin.features import FeatureStore, StoreWriter, extract, remove
from gap_plugin.features.images import BadImages, check_probed
from gap_plugin.features.store import digest
from gap_plugin.probing import knn, probe, save_whole
from kills import KILLS, fork, moments
from networks import full
from runs import digits

MADE_BY = dict(weights='a', rows=10)


def write(folder, rows=10, width=4, block=3, finish=True, dtype='float32'):
    values = np.arange(rows * width, dtype=dtype).reshape(rows, width)
    writer = StoreWriter(folder, rows, width, dtype, block)
    writer.prepare(np.arange(rows), [f'{i}.png' for i in range(rows)],
                   MADE_BY)
    for i in writer.missing():
        writer.write(i, values[i * block:(i + 1) * block])
    return (writer.finish(MADE_BY) if finish else writer), values


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_a_store_gives_back_what_was_written(tmp_path, dtype):
    store, values = write(tmp_path / 'a' / 'train', dtype=dtype)
    assert isinstance(store.features, np.memmap)
    assert store.features.dtype == dtype
    np.testing.assert_array_equal(store.features, values)
    np.testing.assert_array_equal(store.labels, np.arange(10))
    assert list(store.sample_ids[:2]) == ['0.png', '1.png']
    # plain files
    np.testing.assert_array_equal(
        np.load(tmp_path / 'a' / 'train' / 'features.npy'), values)
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['train']


def test_rows_are_dropped_in_the_end(tmp_path):
    writer = StoreWriter(tmp_path / 'train', 7, 2, 'float32', 3)
    writer.prepare(np.arange(7), list('abcdefg'), MADE_BY)
    for i in range(3):
        writer.write(i, np.full((writer.rows_in(i), 2), float(i)),
                     whole=i == 2)
    assert writer.missing().tolist() == [0, 1]
    with pytest.raises(ValueError, match='1 of 3 blocks .*block 1 first'):
        writer.finish(MADE_BY, [0, 2])
    store = writer.finish(MADE_BY, [0, 2, 4], note='x')
    assert store.features.tolist() == [[0, 0], [1, 1], [1, 1], [2, 2]]
    assert store.labels.tolist() == [1, 3, 5, 6]
    assert ''.join(store.sample_ids) == 'bdfg'
    assert sorted(p.name for p in (tmp_path / 'train').iterdir()) == [
        'features.npy', 'labels.npy', 'sample_ids.npy', 'store.json']


def test_an_unfinished_store_is_not_there_and_goes_on(tmp_path):
    folder = tmp_path / 'train'
    writer = StoreWriter(folder, 10, 4, 'float32', 3)
    writer.prepare(np.arange(10), list('abcdefghij'), MADE_BY)
    writer.write(2, np.full((3, 4), 2.))
    with pytest.raises(ValueError, match='3 of 4 blocks .* are missing'):
        writer.finish(MADE_BY)
    assert not folder.exists()
    with pytest.raises(ValueError, match='is no feature store'):
        FeatureStore(folder)
    again = StoreWriter(folder, 10, 4, 'float32', 3)
    again.prepare(np.arange(10), list('abcdefghij'), MADE_BY)
    assert again.missing().tolist() == [0, 1, 3]
    for i in again.missing():
        again.write(i, np.full((1 if i == 3 else 3, 4), float(i)))
    store = again.finish(MADE_BY)
    assert store.features[:, 0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3]


def test_half_of_another_store_is_not_gone_on_with(tmp_path):
    write(tmp_path / 'train', finish=False)
    other = StoreWriter(tmp_path / 'train', 10, 4, 'float32', 3)
    with pytest.raises(ValueError, match='weights a against b now'):
        other.prepare(np.arange(10), list('abcdefghij'),
                      {**MADE_BY, 'weights': 'b'})


def truncate(path):
    os.truncate(path, path.stat().st_size - 4)


def edit(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize('name', ['features.npy', 'labels.npy',
                                  'sample_ids.npy'])
@pytest.mark.parametrize('damage, why', [
    (truncate, 'bytes in place of'), (edit, 'content has changed'),
    (os.unlink, 'missing')])
def test_a_damaged_file_is_named(tmp_path, name, damage, why):
    write(tmp_path / 'train')
    damage(tmp_path / 'train' / name)
    with pytest.raises(ValueError, match=f'{name}.* is damaged .*{why}'):
        FeatureStore(tmp_path / 'train')


def test_a_damaged_description_is_named(tmp_path):
    write(tmp_path / 'train')
    (tmp_path / 'train' / 'store.json').write_text('{"rows": 10')
    with pytest.raises(ValueError, match='store.json.* is damaged'):
        FeatureStore(tmp_path / 'train')


@pytest.mark.parametrize('change, why', [
    (dict(files=None), "it lacks 'files'"),
    (dict(fingerprint=None), "it lacks 'fingerprint'"),
    (dict(fingerprint='a'), "no attribute 'items'"),
    (dict(files=[]), 'list'), (dict(files={}), "lacks 'features.npy'"),
    (dict(files={'features.npy': {}}), "it lacks 'bytes'")])
def test_a_description_without_a_field_is_named(change, why, tmp_path):
    write(tmp_path / 'train')
    path = tmp_path / 'train' / 'store.json'
    known = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({
        key: value for key, value in known.items() if value is not None}))
    with pytest.raises(ValueError, match=f'store.json.* is damaged .*{why}'):
        FeatureStore(tmp_path / 'train')


def row(value):
    values = np.ones((10, 4), np.float32)
    values[7, 2] = value
    return values


@pytest.mark.parametrize('name, values, why', [
    ('labels.npy', np.arange(9), '9 in place of 10'),
    ('sample_ids.npy', np.array(['a']), '1 in place of 10'),
    ('features.npy', row(np.nan), "NaN or infinite features of '7.png'"),
    ('features.npy', row(np.inf), "NaN or infinite features of '7.png'"),
    ('features.npy', np.ones(10), 'float64 of shape'),
    ('features.npy', np.ones((10, 4), int), 'int64 of shape'),
    ('labels.npy', None, 'Python objects'),
])
def test_arrays_that_no_store_has_are_named(name, values, why, tmp_path):
    write(tmp_path / 'train')
    path = tmp_path / 'train' / name
    np.save(path, np.array([None]) if values is None else values)
    known = json.loads((path.parent / 'store.json').read_text())
    known['files'][name].update(bytes=path.stat().st_size,
                                blake2b=digest(path))
    (path.parent / 'store.json').write_text(json.dumps(known))
    with pytest.raises(ValueError, match=f'{name}.* is damaged .*{why}') as e:
        FeatureStore(tmp_path / 'train')
    one_line(e)


def test_a_copy_is_a_store(tmp_path):
    _, values = write(tmp_path / 'train')
    shutil.copytree(tmp_path / 'train', tmp_path / 'b',
                    copy_function=shutil.copyfile)
    np.testing.assert_array_equal(FeatureStore(tmp_path / 'b').features,
                                  values)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(OSError, match='cannot lay out 10 x 4 .*No space'):
        write(tmp_path / 'train')
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size):
    """A disk that is full: the system refuses to write on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_in_mid_pass_loses_nothing(tmp_path):
    writer = StoreWriter(tmp_path / 'train', 4, 500, 'float32', 2)
    writer.prepare(np.arange(4), list('abcd'), MADE_BY)
    writer.write(0, np.ones((2, 500)))
    with files_of_at_most(5000), pytest.raises(
            OSError, match='cannot write to .*train.partial.*run again'):
        writer.write(1, np.ones((2, 500)))
    assert writer.missing().tolist() == [1]
    writer.write(1, np.ones((2, 500)))
    assert (writer.finish(MADE_BY).features == 1).all()


def test_a_checkpoint_that_does_not_fit_leaves_the_former_one(tmp_path):
    path = tmp_path / 'a.pth'
    save_whole(torch.nn.Linear(2, 2), path, {})
    before = path.read_bytes()
    with files_of_at_most(5000), pytest.raises(
            OSError, match=r"cannot write '.*a\.pth', the disk may be full"):
        save_whole(torch.nn.Linear(100, 100), path, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e6])
def test_features_that_are_not_finite_are_refused(tmp_path, value):
    writer = StoreWriter(tmp_path / 'train', 4, 2, 'float16', 4)
    writer.prepare(np.arange(4), list('abcd'), {})
    features = np.zeros((4, 2), np.float32)
    features[2, 1] = value
    with np.errstate(over='ignore'), pytest.raises(
            ValueError, match='row 2 are not finite as float16'):
        writer.write(0, features)


@pytest.mark.parametrize('step', [0, 1, 2])
def test_a_run_that_ends_as_it_drops_rows_is_begun_anew(tmp_path, step,
                                                        monkeypatch):
    writer, _ = write(tmp_path / 'train', finish=False)
    calls = itertools.count()

    def stopped(*args, **kwargs):
        if next(calls) == step:
            raise KeyboardInterrupt
        return unlink(*args, **kwargs)
    unlink = Path.unlink
    monkeypatch.setattr(Path, 'unlink', stopped)
    with pytest.raises(KeyboardInterrupt):
        writer.finish(MADE_BY, [4])
    monkeypatch.undo()
    again = StoreWriter(tmp_path / 'train', 10, 4, 'float32', 3)
    again.prepare(np.arange(10), list('abcdefghij'), MADE_BY)
    for i in again.missing():
        again.write(i, np.zeros((again.rows_in(i), 4)))
    assert len(again.finish(MADE_BY, [4])) == 9
    assert [p.name for p in tmp_path.iterdir()] == ['train']


def test_only_stores_are_removed(tmp_path):
    write(tmp_path / 'train', finish=False)
    (tmp_path / 'train.partial' / 'kept.features.npy').touch()
    remove(tmp_path / 'train')
    assert not list(tmp_path.iterdir())
    write(tmp_path / 'train')
    (tmp_path / 'train' / 'thesis.txt').touch()
    with pytest.raises(ValueError, match="'thesis.txt'.* no feature store"):
        remove(tmp_path / 'train')
    (tmp_path / 'train' / 'thesis.txt').unlink()
    remove(tmp_path / 'train')
    assert not list(tmp_path.iterdir())


def expected(model, cfg, split='test'):
    """Features by hand: the images of the test pipeline, timm, the mean."""
    from mmpretrain.registry import DATASETS
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'split': split})
    model.eval()
    with torch.no_grad():
        images = torch.stack([dataset[i]['inputs'] for i in
                              range(len(dataset))]).float()
        mean, std = (getattr(model.data_preprocessor, k) for k in
                     ('mean', 'std'))
        images = (images.flip(1) - mean) / std
        net = model.backbone.timm_model
        return net.final_conv(net.stages(net.stem(images))).mean(
            (2, 3)), dataset


@pytest.mark.parametrize('split', ['train', 'val'])
def test_features_are_those_of_the_network_on_test_images(tmp_path, split):
    model, cfg = digits()
    model.train()
    store = extract(model, cfg, split, tmp_path / split)
    features, dataset = expected(model, cfg,
                                 dict(train='train', val='test')[split])
    torch.testing.assert_close(torch.tensor(store.features), features,
                               rtol=1e-4, atol=1e-5)
    assert store.labels.tolist() == [
        dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))]


def test_a_preprocessor_may_write_into_its_samples(tmp_path):
    model, cfg = digits()
    cfg.val_dataloader.dataset.indices = 6
    plain = extract(model, cfg, 'val', tmp_path / 'plain').features
    model.data_preprocessor.to_onehot = True  # as the multi-label recipe
    scored = extract(model, cfg, 'val', tmp_path / 'scored').features
    np.testing.assert_array_equal(plain, scored)


def test_norms_neither_follow_the_batches_nor_move(tmp_path):
    model, cfg = digits({'model.backbone': dict(
        type='TimmFeatureBackbone', model_name='test_resnet', img_size=32)})
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.train()
    store = extract(model, cfg, 'val', tmp_path / 'val')
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    cfg.test_dataloader.batch_size = 5  # with which batch norm would differ
    other = extract(model, cfg, 'val', tmp_path / 'other')
    np.testing.assert_allclose(store.features, other.features, rtol=1e-4,
                               atol=1e-5)


def test_a_store_is_used_again_without_a_pass(tmp_path, monkeypatch):
    model, cfg = digits()
    extract(model, cfg, 'val', tmp_path / 'val')
    monkeypatch.setattr('gap_plugin.features.FixedPart.forward',
                        lambda *_: pytest.fail('a second pass'))
    assert len(extract(*digits(), 'val', tmp_path / 'val')) == 355


@pytest.mark.parametrize('change, field', [
    ({'model.backbone.out_feature': 'forward_features'}, 'network'),
    ({'test_dataloader.dataset.pipeline': [dict(type='PackInputs')]},
     'transforms'),
    ({'val_dataloader.dataset.indices': 100}, 'rows'),
    ({'model.data_preprocessor': dict(mean=[0., 0., 0.])}, 'preprocessor'),
])
def test_a_store_of_something_else_is_not_used(tmp_path, change, field):
    extract(*digits(), 'val', tmp_path / 'val')
    with pytest.raises(ValueError, match=f'made otherwise: .*{field} .* now'):
        extract(*digits(change), 'val', tmp_path / 'val')
    assert len(FeatureStore(tmp_path / 'val')) == 355
    extract(*digits(change), 'val', tmp_path / 'val', force=True)


def stored(root, folder, **changes):
    """A store of a folder of images, of each by two pipelines at random."""
    return extract(*digits({**image_config(root), **changes}), 'val', folder)


def no_pass(monkeypatch):
    monkeypatch.setattr('gap_plugin.features.FixedPart.forward',
                        lambda *_: pytest.fail('a second pass'))


def test_an_image_replaced_under_its_name_is_noticed(tmp_path, monkeypatch):
    root = tmp_path / 'd'
    folder_of_images(root, [])
    stored(root, tmp_path / 'val')
    path = root / 'a' / '1.png'
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    no_pass(monkeypatch)
    os.utime(path, ns=(time, time + 1))
    with pytest.raises(ValueError, match='otherwise: images .* against'):
        stored(root, tmp_path / 'val')
    path.write_bytes(content + b'0')
    os.utime(path, ns=(time, time))
    with pytest.raises(ValueError, match='otherwise: images .* against'):
        stored(root, tmp_path / 'val')
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    stored(root, tmp_path / 'val')


def test_images_that_have_moved_are_the_same(tmp_path, monkeypatch):
    root = tmp_path / 'd'
    folder_of_images(root, ['b/2.png'])
    options = image_config(root)
    store = extract(*digits(options), 'val', tmp_path / 'val', skip_bad=True)
    no_pass(monkeypatch)
    root.rename(tmp_path / 'e')
    moved = image_config(tmp_path / 'e')
    with pytest.warns(UserWarning, match=r'is used as it is: what differs '
                      rf'changes no features \(root {root} against'):
        again = extract(*digits(moved), 'val', tmp_path / 'val',
                        skip_bad=True)
    assert len(again) == len(store) == 7
    assert again.images == store.images
    # the same pictures, read otherwise
    moved['test_dataloader']['dataset']['pipeline'][1] = dict(
        type='TimmTestTransform', crop_pct=.5)
    with pytest.raises(ValueError, match='otherwise: transforms .* against'):
        extract(*digits(moved), 'val', tmp_path / 'val', skip_bad=True)


@pytest.mark.parametrize('change', [
    {'test_dataloader.batch_size': 64},
    {'model.backbone.frozen_stages': 'all', 'model.backbone.norm_eval': True}])
def test_what_changes_no_features_is_told(change, tmp_path, monkeypatch):
    extract(*digits(), 'val', tmp_path / 'val')
    no_pass(monkeypatch)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        assert len(extract(*digits(change), 'val', tmp_path / 'val')) == 355
    told = [str(w.message) for w in told if 'no features' in str(w.message)]
    assert [('batch_size' in text) for text in told] == [
        True for key in change if 'batch' in key]


def test_the_same_weights_may_come_from_a_part_of_a_file(tmp_path,
                                                         monkeypatch):
    model, cfg = digits()
    extract(model, cfg, 'val', tmp_path / 'val')
    torch.save(dict(a=model.backbone.timm_model.state_dict()),
               tmp_path / 'a.pth')
    no_pass(monkeypatch)
    assert len(extract(*digits({
        'model.backbone.checkpoint_path': str(tmp_path / 'a.pth'),
        'model.backbone.checkpoint_key': 'a'}), 'val', tmp_path / 'val'))


def as_made(folder, change):
    path = folder / 'store.json'
    made = json.loads(path.read_text())
    change(made['fingerprint'])
    path.write_text(json.dumps(made))


def test_a_patch_release_is_told_and_another_one_refused(tmp_path,
                                                         monkeypatch):
    extract(*digits(), 'val', tmp_path / 'val')
    no_pass(monkeypatch)

    def version(name, parts, by):
        def change(made):
            numbers = made['versions'][name].split('+')[0].split('.')
            made['versions'][name] = '.'.join([*numbers[:parts], by])
        return change

    as_made(tmp_path / 'val', version('torch', 2, '99+cpu'))
    with pytest.warns(UserWarning, match=r'no features \(versions .*torch'):
        extract(*digits(), 'val', tmp_path / 'val')
    for change in (version('timm', 2, '99'), version('torch', 1, '99.1')):
        as_made(tmp_path / 'val', change)
        with pytest.raises(ValueError, match='made otherwise: versions'):
            extract(*digits(), 'val', tmp_path / 'val')


def test_a_store_of_before_goes_by_what_it_says(tmp_path, monkeypatch):
    """It knows no sizes and times, and names places with its images."""
    root = tmp_path / 'd'
    folder_of_images(root, [])
    stored(root, tmp_path / 'val')

    def former(made):
        for name in ('images', 'transforms', 'network', 'root'):
            del made[name]

    as_made(tmp_path / 'val', former)
    no_pass(monkeypatch)
    os.utime(root / 'a' / '1.png', ns=(0, 0))
    assert len(stored(root, tmp_path / 'val')) == 8
    root.rename(tmp_path / 'e')
    with pytest.raises(ValueError, match='otherwise: pipeline .*, data .*'):
        stored(tmp_path / 'e', tmp_path / 'val')


def test_the_same_config_makes_the_same_network(tmp_path, monkeypatch):
    """Also where less of it than before is said to make the features."""
    options = {'model.backbone.channels_last': True}
    extract(*digits(options), 'val', tmp_path / 'val')
    as_made(tmp_path / 'val', lambda made: made.update(network='0'))
    no_pass(monkeypatch)
    assert len(extract(*digits(options), 'val', tmp_path / 'val')) == 355
    with pytest.raises(ValueError, match='made otherwise: network 0 against'):
        extract(*digits(), 'val', tmp_path / 'val')


def test_half_of_a_store_is_gone_on_with_in_its_own_batches(tmp_path):
    whole = stored(*folder_and(tmp_path), tmp_path / 'whole')
    writer = StoreWriter(tmp_path / 'val', 8, 192, 'float32', 3)
    writer.prepare(whole.labels, list(whole.sample_ids), whole.fingerprint)
    with pytest.raises(ValueError, match='half of another .*block 3 against'):
        stored(tmp_path / 'd', tmp_path / 'val', **{
            'test_dataloader.batch_size': 4})
    assert len(stored(tmp_path / 'd', tmp_path / 'val')) == 8


def folder_and(tmp_path):
    folder_of_images(tmp_path / 'd', [])
    return (tmp_path / 'd', )


def test_class_names_are_those_of_the_data_of_today(tmp_path):
    extract(*digits(), 'val', tmp_path / 'val')
    names = [f'digit {i}' for i in range(10)]
    store = extract(*digits({'val_dataloader.dataset.metainfo': dict(
        classes=names)}), 'val', tmp_path / 'val')
    assert list(store.description['metainfo']['classes']) == names


def test_images_without_labels_are_stored_and_not_probed(tmp_path):
    folder_of_images(tmp_path / 'd', [])
    options = image_config(tmp_path / 'd')
    for loader in options.values():
        loader['dataset']['with_label'] = False
    options['train_dataloader'] = options['val_dataloader']
    model, cfg = digits(options)
    store = extract(model, cfg, 'val', tmp_path / 'val')
    assert store.labels is None and len(store) == 8
    assert sorted(path.name for path in (tmp_path / 'val').iterdir()) == [
        'features.npy', 'sample_ids.npy', 'store.json']
    named = extract(*digits(image_config(tmp_path / 'd')), 'val',
                    tmp_path / 'named')
    np.testing.assert_array_equal(store.features, named.features)
    assert len(extract(model, cfg, 'val', tmp_path / 'val')) == 8  # again
    needed = "images of 'val' have no labels, which a probe needs"
    with pytest.raises(ValueError, match=needed):
        probe(model, cfg, named, store, epochs=1, work_dir=tmp_path / 'w',
              metainfo={})
    with pytest.raises(ValueError, match=needed):
        knn(named, store, [1])
    with pytest.raises(ValueError, match="images of 'train' have no labels"):
        check_probed(cfg, ['train', 'val'])
    with pytest.raises(ValueError, match='made otherwise: .*images .* now'):
        extract(*digits(image_config(tmp_path / 'd')), 'val',
                tmp_path / 'val')
    edit(tmp_path / 'val' / 'sample_ids.npy')
    with pytest.raises(ValueError, match='sample_ids.npy.* is damaged'):
        FeatureStore(tmp_path / 'val')


def test_a_store_of_other_weights_is_not_used(tmp_path):
    model, cfg = digits()
    extract(model, cfg, 'val', tmp_path / 'val')
    with torch.no_grad():
        weight = next(model.backbone.parameters())
        weight[(0, ) * weight.ndim] += 1e-3
    with pytest.raises(ValueError, match='weights .* against .* now'):
        extract(model, cfg, 'val', tmp_path / 'val')
    with pytest.raises(ValueError, match='dtype float32 against float16'):
        extract(*digits(), 'val', tmp_path / 'val', dtype='float16')


def test_the_head_does_not_make_another_store(tmp_path):
    extract(*digits(), 'val', tmp_path / 'val')
    extract(*digits({'model.head.num_classes': 12}), 'val', tmp_path / 'val')


def test_stock_parts_are_stored_too(tmp_path):
    model, cfg = digits({'model': dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=512))})
    pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
    cfg.test_dataloader.dataset.pipeline = pipeline
    store = extract(model, cfg, 'val', tmp_path / 'val')
    assert store.features.shape == (355, 512)


@pytest.mark.parametrize('options, message', [
    ({'model.head.num_classes': 5}, 'labels from 0 to 9, but num_classes of '
     'the head is 5'),
    ({'val_dataloader.dataset.indices': 0}, "split 'val' is empty"),
    ({'model.neck': [dict(type='BNNeck')]}, 'are not pooled: put a GAPNeck'),
    ({'model.backbone.out_indices': (0, 1), 'model.neck': [
        dict(type='GAPNeck')]}, 'gives 2 maps, a store holds one'),
    ({'val_dataloader': None}, 'has no val_dataloader'),
])
def test_what_cannot_be_stored_is_refused_ahead_of_the_pass(
        tmp_path, options, message):
    model, cfg = digits(options)
    with pytest.raises(ValueError, match=message):
        extract(model, cfg, 'val', tmp_path / 'val')
    assert not list(tmp_path.iterdir())


def test_a_config_without_a_test_pipeline_is_told_so(tmp_path):
    model, cfg = digits({'val_dataloader': None, 'test_dataloader': None})
    with pytest.raises(ValueError) as info:
        extract(model, cfg, 'train', tmp_path / 'train')
    assert one_line(info).startswith(
        'the config has no test_dataloader and no val_dataloader, whose')


def folder_of_images(root, bad):
    for label in 'ab':
        (root / label).mkdir(parents=True)
        for i in range(4):
            Image.new('RGB', (40, 40), (60 * i, 0, 0)).save(
                root / label / f'{i}.png')
    for name in bad:
        (root / name).write_bytes(b'no image')


OURS_LOADS = dict(type='LoadTimmImage')


def image_config(root, load=OURS_LOADS, batch=3, **dataset):
    data = dict(
        batch_size=batch, num_workers=0, collate_fn=dict(
            type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
            type='CustomDataset', data_root=str(root), data_prefix='',
            pipeline=[load, dict(type='TimmTestTransform'),
                      dict(type='PackInputs')], **dataset))
    return dict(val_dataloader=data, test_dataloader=data)


def ids(store):
    return [s[-7:] for s in store.sample_ids]


@pytest.mark.parametrize('load', [OURS_LOADS, dict(type='LoadImageFromFile')])
@pytest.mark.parametrize('workers', [0, full(1)])
def test_unreadable_images_are_named_or_left_out(tmp_path, load, workers):
    folder_of_images(tmp_path / 'd', ['a/1.png', 'b/3.png'])
    options = image_config(tmp_path / 'd', load)
    options['val_dataloader']['num_workers'] = workers
    with pytest.raises(BadImages, match="2 of 8 images of 'val' cannot be "
                       r"read: '.*a/1\.png' \(.*\), '.*b/3\.png' \(.*"
                       'skip_bad=True') as info:
        extract(*digits(options), 'val', tmp_path / 'val')
    reason = ('it is no image that Pillow knows' if load is OURS_LOADS else
              'failed to load image')
    assert one_line(info).count(reason) == 2
    with pytest.warns(UserWarning, match='2 of 8 images .* left out'):
        store = extract(*digits(options), 'val', tmp_path / 'val',
                        skip_bad=True)
    assert ids(store) == ['a/0.png', 'a/2.png', 'a/3.png', 'b/0.png',
                          'b/1.png', 'b/2.png']
    assert store.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [s[-7:] for s in store.description['skipped']] == [
        'a/1.png', 'b/3.png']
    # the rows are those of a folder without the bad ones
    for name in ('a/1.png', 'b/3.png'):
        (tmp_path / 'd' / name).unlink()
    whole = extract(*digits(options), 'val', tmp_path / 'whole')
    np.testing.assert_allclose(store.features, whole.features, rtol=1e-4,
                               atol=1e-5)
    assert {**store.fingerprint, 'data': ''} == {**whole.fingerprint,
                                                 'data': ''}
    assert sorted(p.name for p in tmp_path.iterdir()) == ['d', 'val', 'whole']


def test_of_images_without_labels_bad_ones_are_left_out(tmp_path):
    folder_of_images(tmp_path / 'd', ['a/1.png'])
    options = image_config(tmp_path / 'd', with_label=False)
    for _ in range(2):
        store = extract(*digits(options), 'val', tmp_path / 'val',
                        skip_bad=True)
        assert store.labels is None
        assert sorted(ids(store)) == [
            f'{label}/{i}.png' for label in 'ab' for i in range(4)
            if (label, i) != ('a', 1)]


def test_data_without_a_readable_image_is_refused(tmp_path):
    folder_of_images(tmp_path / 'd', [
        f'{label}/{i}.png' for label in 'ab' for i in range(4)])
    options = image_config(tmp_path / 'd')
    # a whole batch ends the pass
    with pytest.raises(BadImages, match='3 of 8 images .*a/0.*a/1.*a/2'):
        extract(*digits(options), 'val', tmp_path / 'val')
    with pytest.raises(BadImages, match='8 of 8 images .*, ...; check data'):
        extract(*digits(options), 'val', tmp_path / 'val', skip_bad=True)
    Image.new('RGB', (40, 40)).save(tmp_path / 'd' / 'a' / '0.png')
    with pytest.raises(BadImages, match='5 of 8 images .*b/1'):
        extract(*digits(options), 'val', tmp_path / 'val')
    assert not (tmp_path / 'val').exists()


@pytest.fixture
def loads(monkeypatch):
    """Names of the images that are read."""
    names, transform = [], LoadTimmImage.transform

    def counted(self, results):
        names.append(results['img_path'][-7:])
        return transform(self, results)
    monkeypatch.setattr(LoadTimmImage, 'transform', counted)
    return names


def test_every_image_is_read_once(tmp_path, loads):
    folder_of_images(tmp_path / 'd', [])
    options = image_config(tmp_path / 'd')
    store = extract(*digits(options), 'val', tmp_path / 'val')
    assert sorted(loads) == ids(store)


@pytest.mark.parametrize('kind', [MemoryError, ImportError])
def test_what_is_no_fault_of_the_image_ends_the_pass(tmp_path, kind,
                                                     monkeypatch):
    folder_of_images(tmp_path / 'd', [])

    def fails(self, results):
        if results['img_path'].endswith('b/3.png'):
            raise kind('too much')
        return transform(self, results)
    transform = LoadTimmImage.transform
    monkeypatch.setattr(LoadTimmImage, 'transform', fails)
    with pytest.raises(kind, match='too much'):
        extract(*digits(image_config(tmp_path / 'd')), 'val',
                tmp_path / 'val', skip_bad=True)


def broken_jpeg(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])


def test_a_pass_with_a_broken_image_is_gone_on_with(tmp_path, loads):
    folder_of_images(tmp_path / 'd', [])
    broken_jpeg(tmp_path / 'd' / 'b' / '1.jpg')
    options = image_config(tmp_path / 'd')
    with pytest.raises(ValueError, match=r"1 of 9 images .*b/1\.jpg' "
                       r'\(image file is truncated .*\)'):
        extract(*digits(options), 'val', tmp_path / 'val')
    loads.clear()
    with pytest.warns(UserWarning, match=r'b/1\.jpg.*left out'):
        store = extract(*digits(options), 'val', tmp_path / 'val',
                        skip_bad=True)
    assert len(store) == 8
    # one image for the width, and its batch
    assert loads == ['a/0.png', 'a/3.png', 'b/0.png', 'b/1.jpg']
    loads.clear()  # known from the store: nothing is read again
    assert len(extract(*digits(options), 'val', tmp_path / 'val',
                       skip_bad=True)) == 8
    with pytest.raises(ValueError, match='rows 8 against 9 now'):
        extract(*digits(options), 'val', tmp_path / 'val')
    # an image more is no bad image
    shutil.copy(tmp_path / 'd' / 'b' / '1.png', tmp_path / 'd' / 'b' / 'n.png')
    with pytest.raises(ValueError, match='rows 8 against 9 now'):
        extract(*digits(options), 'val', tmp_path / 'val', skip_bad=True)
    assert not loads
    # one that is mended comes back by force, whatever else is bad
    whole = tmp_path / 'd' / 'b' / '2.png'
    shutil.copy(whole, tmp_path / 'd' / 'b' / '1.jpg')
    whole.write_bytes(b'no image')
    with pytest.warns(UserWarning, match=r'b/2\.png.*left out'):
        store = extract(*digits(options), 'val', tmp_path / 'val',
                        skip_bad=True, force=True)
    assert ids(store)[4:] == ['b/0.png', 'b/1.jpg', 'b/1.png', 'b/3.png',
                              'b/n.png']


@TRANSFORMS.register_module()
class LoadNumpyOfATest(BaseTransform):

    def transform(self, results):
        results['img'] = np.load(results['img_path'])
        results['img_shape'] = results['img'].shape[:2]
        return results


@pytest.mark.parametrize('suffix, load', [
    ('npy', dict(type='LoadNumpyOfATest')), ('npy', OURS_LOADS),
    ('tif', dict(type='LoadImageFromFile', imdecode_backend='tifffile')),
    ('tif', OURS_LOADS)])
def test_what_the_config_loads_is_extracted(tmp_path, suffix, load):
    rng = np.random.default_rng(0)
    write = np.save if suffix == 'npy' else tifffile.imwrite
    for label in 'ab':
        (tmp_path / 'd' / label).mkdir(parents=True)
        for i in range(2):
            write(tmp_path / 'd' / label / f'{i}.{suffix}',
                  rng.integers(0, 256, (40, 40, 5), np.uint8))
    options = image_config(tmp_path / 'd', load, extensions=(f'.{suffix}', ))
    model, cfg = digits({'model.backbone.in_channels': 5, **options})
    store = extract(model, cfg, 'val', tmp_path / 'val')
    again = extract(*digits({'model.backbone.in_channels': 5, **options}),
                    'val', tmp_path / 'again')
    assert len(store) == 4 and np.ptp(store.features, axis=0).max() > 1e-3
    np.testing.assert_array_equal(store.features, again.features)


@pytest.mark.parametrize('kills', [2, full(20)])
def test_a_killed_pass_leaves_the_same_images_out(tmp_path, kills):
    folder_of_images(tmp_path / 'd', ['a/0.png', 'a/2.png', 'b/3.png'])
    options = image_config(tmp_path / 'd', batch=2)

    def run(folder):
        return extract(*digits(options), 'val', folder, skip_bad=True)

    with pytest.warns(UserWarning, match='left out'):
        whole = run(tmp_path / 'whole')
    _, count = fork(lambda: run(tmp_path / 'b'), str(tmp_path / 'b'))
    for moment in moments(count, kills):
        folder = tmp_path / str(moment)
        status, _ = fork(lambda f=folder: run(f), str(folder), moment)
        assert status == -signal.SIGKILL
        for name in ('features', 'labels', 'sample_ids'):
            np.testing.assert_array_equal(
                getattr(run(folder), name), getattr(whole, name))
        assert not folder.with_name(f'{moment}.partial').exists()


def test_force_goes_on_with_the_half_that_fits(tmp_path):
    made, others = dict(MADE_BY), dict(MADE_BY, weights='b')
    write(tmp_path / 'train', finish=False)
    remove(tmp_path / 'train', unless=made)
    assert (tmp_path / 'train.partial').exists()
    remove(tmp_path / 'train', unless=others)
    assert not list(tmp_path.iterdir())
    write(tmp_path / 'train')
    remove(tmp_path / 'train', unless=made)
    assert len(FeatureStore(tmp_path / 'train')) == 10
    edit(tmp_path / 'train' / 'features.npy')
    remove(tmp_path / 'train', unless=made)
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_is_made_again_by_force(tmp_path):
    model, cfg = digits()
    whole = np.array(extract(model, cfg, 'val', tmp_path / 'val').features)
    edit(tmp_path / 'val' / 'features.npy')
    with pytest.raises(ValueError, match='is damaged'):
        extract(model, cfg, 'val', tmp_path / 'val')
    store = extract(model, cfg, 'val', tmp_path / 'val', force=True)
    np.testing.assert_array_equal(store.features, whole)


def _run(folder):
    return extract(*digits({'test_dataloader.batch_size': 16}), 'val', folder)


@pytest.mark.parametrize('kills', [KILLS, full(20)])
def test_a_run_killed_at_any_moment_goes_on(tmp_path, kills):
    whole = tmp_path / 'whole'
    status, count = fork(lambda: _run(whole), str(whole))
    assert status == 0 and count > 2 * 22  # a block and its flag
    for moment in moments(count, kills):
        folder = tmp_path / str(moment)
        status, _ = fork(lambda f=folder: _run(f), str(folder), moment)
        assert status == -signal.SIGKILL
        assert folder.exists() is (moment == count)  # it is in its place
        np.testing.assert_array_equal(_run(folder).features,
                                      FeatureStore(whole).features)
        assert not folder.with_name(f'{moment}.partial').exists()


EXTRACT = OURS / 'extract_features.py'


@pytest.mark.parametrize('bad', [False, full(True)])
def test_two_processes_store_the_same_bytes_as_one(tmp_path, bad):
    flags = (DIGITS, '--splits', 'val', '--work-dir', tmp_path / 'w', '--out')
    rows = 355
    if bad:
        folder_of_images(tmp_path / 'd', ['a/1.png', 'b/3.png'])
        cfg = Config.fromfile(DIGITS)
        for name, loader in image_config(tmp_path / 'd').items():
            cfg[name] = loader
        cfg.dump(tmp_path / 'config.py')
        flags = (tmp_path / 'config.py', '--skip-bad', *flags[1:])
        rows = 6
    for text in (
            python(EXTRACT, *flags, tmp_path / 'one'),
            call(sys.executable, '-m', 'torch.distributed.run',
                 '--nproc_per_node', 2, '--master_port', free_port(),
                 EXTRACT, *flags, tmp_path / 'two', '--launcher', 'pytorch')):
        assert re.search(rf'{rows} x 192 float32', text)
    for file in ('features.npy', 'labels.npy', 'sample_ids.npy'):
        assert ((tmp_path / 'one' / 'val' / file).read_bytes()
                == (tmp_path / 'two' / 'val' / file).read_bytes())
    one, two = (json.loads((tmp_path / n / 'val' / 'store.json').read_text())
                for n in ('one', 'two'))
    assert one['fingerprint'] == two['fingerprint']


def test_the_tool_says_in_one_line_what_is_wrong(tmp_path):
    text = python(EXTRACT, DIGITS, '--out', tmp_path, '--splits', 'val',
                  '--work-dir', tmp_path, '--cfg-options',
                  'model.head.num_classes=5', ok=False)
    assert last_line(text).startswith(
        "extract_features.py: error: the split 'val' has labels from 0 to 9")
