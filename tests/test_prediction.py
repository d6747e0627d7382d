"""Predictions of images: what the model says of each, one row an image."""

import csv
import json
import os
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas
import pytest
import tifffile
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from PIL import Image

from commands import main
from errors import one_line
from gap_plugin.engine.building import build_classifier
from gap_plugin.features import engines
from gap_plugin.prediction import (
    Classifier,
    Columns,
    ExportedClassifier,
    Images,
    find_images,
    predict,
    rows,
)
from kills import KILLS, fork, moments
from networks import full
from runs import predicted

LOAD = dict(type='LoadTimmImage')
PACK = dict(type='PackInputs')


def pictures(folder, sizes=((40, 50), (33, 61), (64, 64)), count=7,
             channels=3, start=0):
    """Images of several sizes, the same each time."""
    rng = np.random.default_rng(start)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        shape = (height, width, channels)[:2 if channels == 1 else 3]
        # smooth, as photos are
        small = Image.fromarray(rng.integers(
            0, 256, (6, 6, *shape[2:]), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f'{i}.png')
    return folder


def config(images, pipeline, model, batch_size=3):
    """A config that tests on a folder, as people have it."""
    init_default_scope('mmpretrain')
    names = sorted(path.relative_to(images).as_posix()
                   for path in images.rglob('*.png'))
    listed = images.parent / f'{images.name}.txt'
    listed.write_text(''.join(f'{name} 0\n' for name in names),
                      encoding='utf-8')
    return Config(dict(
        model=model, test_dataloader=dict(
            batch_size=batch_size, num_workers=0, persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='CustomDataset', data_root=str(images),
                ann_file=str(listed), data_prefix='', pipeline=pipeline,
                classes=[f'class {i}' for i in range(5)]))))


def ours(network='test_resnet', channels=3, head='LinearHead'):
    return dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name=network,
                      img_size=32, in_channels=channels),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type=head, num_classes=5))


def stock(backbone, head, **others):
    return dict(
        type='ImageClassifier', backbone=backbone,
        neck=dict(type='GlobalAveragePooling'), head=dict(
            num_classes=5, **head),
        data_preprocessor=dict(mean=[123., 116., 103.],
                               std=[58., 57., 57.], to_rgb=True), **others)


RESNET = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8,
              out_indices=(3, ))
LINEAR = dict(type='LinearClsHead', in_channels=64)
SEVERAL = dict(type='MultiLabelLinearClsHead', in_channels=64)
CV2 = [dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=36),
       dict(type='CenterCrop', crop_size=32), PACK]
TIMM = [LOAD, dict(type='TimmTestTransform'), PACK]


def built(cfg, std=.1):
    """A model whose scores differ between images."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def table(path):
    """A table, as pandas reads it."""
    return dict(csv=pandas.read_csv, json=pandas.read_json,
                parquet=pandas.read_parquet)[path.suffix[1:]](path)


def of_all(scorer, images, out, **kwargs):
    """All scores of some images, and the best label."""
    predict(scorer, find_images([images]), out, Columns(
        all_classes=True, label_type='index', **kwargs), engine='torch')
    found = table(out)
    return found, found[[str(i) for i in range(5)]].to_numpy(np.float32)


CASES = {
    'ours': (ours(), TIMM), 'stock': (stock(RESNET, LINEAR), CV2),
    'several labels': (stock(RESNET, SEVERAL), CV2),
    'cosine': (stock(RESNET, dict(type='ArcFaceClsHead', in_channels=64)),
               CV2),
    'hidden': (stock(RESNET, dict(type='StackedLinearClsHead',
                                  in_channels=64, mid_channels=[8])), CV2)
}
HEAVY = {
    'two logits': (dict(
        type='ImageClassifier',
        backbone=dict(type='Conformer', arch='tiny', drop_path_rate=0.,
                      init_cfg=None),
        head=dict(type='ConformerHead', num_classes=5,
                  in_channels=[256, 384])), [
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=224),
            PACK]),
    'distilled': (dict(
        type='ImageClassifier',
        backbone=dict(type='DistilledVisionTransformer', arch='deit-tiny',
                      img_size=32, patch_size=16),
        head=dict(type='DeiTClsHead', num_classes=5, in_channels=192)), [
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=32),
            PACK]),
    'of timm': (dict(
        type='TimmClassifier', model_name='test_resnet', num_classes=5), [
            dict(type='LoadImageFromFile'), dict(type='Resize', scale=64),
            PACK])
}


@pytest.mark.parametrize('case', [*CASES, *(full(name) for name in HEAVY)])
def test_rows_are_what_the_test_loop_predicts(case, tmp_path):
    """To the bit: the same pipeline, batches and arithmetic."""
    model, pipeline = {**CASES, **HEAVY}[case]
    images = pictures(tmp_path / 'images')
    cfg = config(images, pipeline, model)
    if case == 'of timm':
        model = MODELS.build(cfg.model).eval()
    else:
        model = built(cfg)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    expected = predicted(model, loader)
    found, scores = of_all(Classifier(model, cfg), images,
                           tmp_path / 'out.parquet')
    wanted = torch.stack([sample.pred_score for sample in expected])
    np.testing.assert_array_equal(scores, wanted.numpy())
    assert wanted.std(0).max() > 1e-5
    assert found['image'].tolist() == [f'{i}.png' for i in range(7)]
    if case == 'several labels':  # as many as the head says
        for (_, row), sample in zip(found.iterrows(), expected, strict=True):
            labels = [row[name] for name in found if name.startswith('label')]
            assert sorted(x for x in labels if not np.isnan(x)) == (
                sample.pred_label.tolist())
    else:
        assert found['label'].tolist() == [
            int(sample.pred_label) for sample in expected]
        np.testing.assert_array_equal(
            found['score'].to_numpy(np.float32), wanted.max(1).values)


@pytest.mark.parametrize('kind', ['grey', 'bands'])
def test_images_are_read_as_in_training(kind, tmp_path):
    """Grey of 16 bits, and more bands than three."""
    images, channels = tmp_path / 'images', dict(grey=1, bands=5)[kind]
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        if kind == 'grey':
            pixels = rng.integers(0, 1 << 16, (40, 40)).astype(np.uint16)
            Image.fromarray(pixels).save(images / f'{i}.png')
        else:
            pixels = rng.integers(0, 256, (40, 40, 5), np.uint8)
            tifffile.imwrite(images / f'{i}.tif', pixels)
    if kind == 'bands':
        np.save(images / '4.npy', pixels)
        listed = images.parent / 'list.txt'
    cfg = config(images, TIMM, ours(channels=channels))
    if kind == 'bands':
        listed = Path(cfg.test_dataloader.dataset.ann_file)
        listed.write_text(''.join(f'{i}.tif 0\n' for i in range(4))
                          + '4.npy 0\n', encoding='utf-8')
    model = built(cfg)
    expected = predicted(model, Runner.build_dataloader(cfg.test_dataloader))
    _, scores = of_all(Classifier(model, cfg), images, tmp_path / 'a.parquet')
    np.testing.assert_array_equal(scores, torch.stack([
        sample.pred_score for sample in expected]).numpy())


def test_files_stand_for_the_arrays_of_a_dataset(tmp_path):
    """CIFAR gives RGB, and files are loaded as BGR."""
    images = pictures(tmp_path / 'images', [(32, 32)], 3)
    model = stock(RESNET, LINEAR)
    model['data_preprocessor']['to_rgb'] = False
    cfg = config(images, [PACK], model)
    model = built(cfg)
    _, scores = of_all(Classifier(model, cfg), images, tmp_path / 'a.parquet')
    arrays = [np.asarray(Image.open(images / f'{i}.png')) for i in range(3)]
    inputs = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    batch = model.data_preprocessor(dict(inputs=torch.stack(inputs)))
    expected = torch.softmax(model(batch['inputs']), 1).detach().numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)


class Stub:
    """Scores that follow from the names of images; no network."""

    classes = [f'c{i}' for i in range(5)]
    number = 0
    sigmoid = False
    reads = ()

    def __init__(self, number=5, batch_size=4):
        self.width, self.batch_size = number, batch_size
        self.seen = []

    def loader(self, batch_size, workers):
        return dict(batch_size=batch_size or self.batch_size,
                    num_workers=workers or 0, collate_fn=dict(type=list))

    def samples(self, images):
        return Named(images)

    def identity(self):
        return 'stub'

    def usual(self):
        return (None, .5) if self.sigmoid else (None, None)

    def open(self, batch, **kwargs):
        self.number = self.width
        return 'torch'

    def __call__(self, batch):
        self.seen += batch
        logits = torch.stack([torch.randn(
            self.width, generator=torch.Generator().manual_seed(
                sum(map(ord, Path(name).name)))) for name in batch])
        return logits, (torch.sigmoid(logits) if self.sigmoid else
                        torch.softmax(logits, 1))


class Named(torch.utils.data.Dataset):
    """The names of images; 'bad' ones cannot be read."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        if 'bad' in self.images[row]:
            raise ValueError('no image')
        return self.images[row]


def scores_of(name, width=5):
    return torch.softmax(Stub(width)([name])[0], 1)[0].numpy()


def names(count=10, bad=()):
    return Images('', [f'{"bad" * (i in bad)}{i}.png' for i in range(count)])


def run(out, images=None, columns=None, scorer=None, **kwargs):
    return predict(scorer or Stub(), images or names(), out, columns,
                   **kwargs)


@pytest.mark.parametrize('suffix', ['csv', 'json', 'parquet'])
def test_the_kinds_of_tables_say_the_same(suffix, tmp_path):
    out = tmp_path / f'out.{suffix}'
    done = run(out, names(10, (2, 7)), Columns(topk=3, all_classes=True))
    assert done.rows == 8
    assert done.skipped == {'bad2.png': 'no image', 'bad7.png': 'no image'}
    found = table(out)
    assert list(found) == ['image', 'label', 'score', 'label_2', 'score_2',
                           'label_3', 'score_3', *Stub.classes]
    assert found['image'].tolist() == [
        f'{i}.png' for i in range(10) if i not in (2, 7)]
    for _, row in found.iterrows():
        expected = scores_of(row['image'])
        order = np.argsort(-expected)
        np.testing.assert_array_equal(
            row[Stub.classes].to_numpy(np.float32), expected)
        for rank, end in enumerate(('', '_2', '_3')):
            assert row[f'label{end}'] == f'c{order[rank]}'
            assert np.float32(row[f'score{end}']) == expected[order[rank]]
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name]


@pytest.mark.parametrize('suffix', ['csv', 'json', 'parquet'])
def test_labels_below_the_threshold_are_empty(suffix, tmp_path):
    out = tmp_path / f'out.{suffix}'
    images = names(12)
    probabilities = np.stack([scores_of(name) for name in images.names])
    threshold = .25
    counts = (probabilities >= threshold).sum(1)
    assert len(set(counts)) > 1
    run(out, images, Columns(threshold=threshold, label_type='index'))
    found = table(out)
    assert found.shape[1] == 1 + 2 * counts.max()
    labels = found[[c for c in found if c.startswith('label')]].to_numpy()
    scores = found[[c for c in found if c.startswith('score')]].to_numpy()
    np.testing.assert_array_equal((~pandas.isna(labels)).sum(1), counts)
    assert (scores[~pandas.isna(scores)] >= threshold).all()
    for kwargs, width in ((dict(topk=1), 3), (dict(topk=4), 9)):
        run(out, images, Columns(threshold=threshold, **kwargs), force=True)
        found = table(out)
        assert found.shape[1] == width
        assert (~found['label'].isna()).sum() == (counts > 0).sum()


def test_a_model_of_several_labels_gives_those_of_its_head(tmp_path):
    scorer = Stub()
    scorer.sigmoid = True
    out = tmp_path / 'out.json'
    run(out, scorer=scorer, columns=Columns(label_type='index'))
    for row in json.loads(out.read_text(encoding='utf-8')):
        expected = Stub()([row['image']])[0].sigmoid()[0]
        labels = [row[key] for key in row if key.startswith('label')]
        assert sorted(x for x in labels if x is not None) == (
            torch.nonzero(expected >= .5).flatten().tolist())
    run(out, scorer=scorer, columns=Columns(topk=2), force=True)
    assert all(row['label_2'] is not None for row in json.loads(
        out.read_text(encoding='utf-8')))


def test_scores_may_be_logits(tmp_path):
    run(tmp_path / 'a.csv', columns=Columns(
        output_type='logit', all_classes=True, topk=2, threshold=.3))
    for _, row in table(tmp_path / 'a.csv').iterrows():
        logits = Stub()([row['image']])[0][0].numpy()
        np.testing.assert_array_equal(
            row[Stub.classes].to_numpy(np.float32), logits)
        if scores_of(row['image']).max() >= .3:
            assert np.float32(row['score']) == logits.max()
        else:
            assert np.isnan(row['score'])


HOSTILE = ['=cmd()|x.png', 'a,"b".png', 'new\nline.png', 'car\rriage.png',
           "'.png", ' lead.png', '-1.png', '@x.png', 'ü猫.png', '\u2028.png',
           '<script>.png', '{{x}}.png', 'a\\b.png', 'None.png']


@pytest.mark.skipif(sys.platform != 'linux', reason='names of other systems')
def test_names_of_files_and_classes_are_data(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in [*map(os.fsencode, HOSTILE), b'\xff\xfe.png']:
        Path(os.fsdecode(bytes(folder) + b'/' + name)).touch()
    images = find_images([str(folder)])
    wanted = sorted([*HOSTILE, os.fsdecode(b'\xff\xfe.png')])
    assert sorted(images.names) == wanted
    assert all(os.path.exists(image) for image in images)
    scorer = Stub()
    scorer.classes = ['=1+1', 'a,b', 'c\n"d"', '<b>', '']
    with pytest.warns(UserWarning, match='not UTF-8.*surrogateescape'):
        run(tmp_path / 'a.csv', images, scorer=scorer)
    run(tmp_path / 'a.json', images, scorer=scorer)
    with open(tmp_path / 'a.csv', newline='', encoding='utf-8',
              errors='surrogateescape') as file:
        rows_of = [*csv.DictReader(file)]
    for found in (rows_of, json.loads(
            (tmp_path / 'a.json').read_text(encoding='utf-8'))):
        assert [row['image'] for row in found] == images.names
        for row in found:
            assert row['label'] == scorer.classes[
                int(scores_of(row['image']).argmax())]
    with pytest.raises(ValueError, match='not UTF-8.*rename') as error:
        run(tmp_path / 'a.parquet', images)
    one_line(error)
    images.names.remove(os.fsdecode(b'\xff\xfe.png'))
    run(tmp_path / 'a.parquet', images, scorer=scorer)
    assert table(tmp_path / 'a.parquet')['image'].tolist() == images.names


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
@pytest.mark.filterwarnings('ignore:neither')
def test_memory_does_not_grow_with_the_images(suffix, tmp_path, monkeypatch):
    """Rows of 400 bytes, 600 kB of them."""
    monkeypatch.setattr(rows, 'PART', 1 << 16)
    images = names(1500, (5, 1000))
    scorer = Stub(100, 32)
    scorer.classes = None
    peaks = []
    for count in (150, 1500):
        part = Images('', images.names[:count])
        scorer.seen.clear()
        tracemalloc.start()
        run(tmp_path / f'{count}.{suffix}', part, Columns(all_classes=True),
            scorer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 3e5, peaks


def test_a_run_that_is_killed_goes_on_to_the_same_table(tmp_path):
    """At each moment, the last ones included: the table in its place."""
    images = names(18, (0, 1, 2, 3, 9))
    columns = Columns(topk=2)
    run(tmp_path / 'whole.csv', images, columns)
    expected = (tmp_path / 'whole.csv').read_bytes()

    def work(place, resume=False):
        return run(place / 'a.csv', images, columns, resume=resume)

    (tmp_path / 'count').mkdir()
    _, count = fork(lambda: work(tmp_path / 'count'), r'a\.csv')
    for moment in sorted({*moments(count, max(KILLS, 5)),
                          *range(count - 6, count + 1)}):
        place = tmp_path / str(moment)
        place.mkdir()
        status, _ = fork(lambda at=place: work(at), r'a\.csv', moment)
        assert status != 0
        if (place / 'a.csv').exists():
            assert (place / 'a.csv').read_bytes() == expected
        done = work(place, resume=True) if (
            (place / 'a.csv.partial').exists()
            or not (place / 'a.csv').exists()) else None
        assert (place / 'a.csv').read_bytes() == expected
        assert done is None or len(done.skipped) == 5
        assert [p.name for p in place.iterdir()
                if not p.name.startswith('.')] == ['a.csv']


def half(out, images=None, stop=2, **kwargs):
    """A run that stops after some batches."""

    class Stops(Stub):
        def __call__(self, batch):
            if len(self.seen) >= 4 * stop:
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        run(out, images, scorer=Stops(), **kwargs)


def test_what_is_done_is_not_done_again(tmp_path):
    out, scorer = tmp_path / 'a.csv', Stub()
    half(out)
    done = run(out, scorer=scorer, resume=True)
    assert scorer.seen == ['8.png', '9.png']
    assert done.rows == 10
    run(tmp_path / 'b.csv')
    assert out.read_bytes() == (tmp_path / 'b.csv').read_bytes()


def test_half_a_batch_is_made_again(tmp_path):
    out, scorer, images = tmp_path / 'a.csv', Stub(), names(10, (1, 6))
    half(out, images, stop=1)
    written = tmp_path / 'a.csv.partial' / 'rows'
    size = written.stat().st_size // 8
    with open(written, 'r+b') as file:
        file.truncate(6 * size + 3)
    with open(written.with_name('skipped'), 'ab') as file:
        file.write(b'[7, "a share that did not answer"]\n[5, "tor')
    done = run(out, images, scorer=scorer, resume=True)
    assert scorer.seen == [f'{i}.png' for i in (4, 5, 7, 8, 9)]
    assert done.skipped == {'bad1.png': 'no image', 'bad6.png': 'no image'}
    run(tmp_path / 'b.csv', images)
    assert out.read_bytes() == (tmp_path / 'b.csv').read_bytes()


def test_what_was_made_otherwise_is_not_gone_on_with(tmp_path):
    out = tmp_path / 'a.csv'
    half(out)
    other = Stub()
    other.identity = lambda: 'other'
    named = Stub()
    named.classes = list('abcde')
    for field, changes in (
            ('checkpoint', dict(scorer=other)),
            ('classes', dict(scorer=named)),
            ('images', dict(images=names(11))),
            ('topk', dict(columns=Columns(topk=2))),
            ('output_type', dict(columns=Columns(output_type='logit'))),
            ('batch_size', dict(batch_size=3)),
            ('amp', dict(amp=True))):
        with pytest.raises(ValueError, match=rf'begun otherwise: {field} '
                           ) as error:
            run(out, resume=True, **changes)
        assert 'force=True' in one_line(error)
    with pytest.raises(ValueError, match='resume=True.*force=True') as error:
        run(out)
    one_line(error)
    assert not out.exists()
    scorer = Stub()
    run(out, scorer=scorer, force=True)
    assert len(scorer.seen) == 10


@pytest.mark.parametrize('engine', ['auto', 'torch'])
def test_a_network_is_run_again_by_what_has_run_it(engine, tmp_path,
                                                   monkeypatch):
    """Although others may be faster by then."""
    model, cfg = small(tmp_path)
    images = find_images([pictures(tmp_path / 'images', count=7)])

    class Stops(Classifier):
        calls = 0

        def __call__(self, batch):
            self.calls += 1
            if self.calls > 1:
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        predict(Stops(model, cfg), images, tmp_path / 'a.csv', engine=engine)
    # so that any number of images is enough for others
    monkeypatch.setattr(engines, 'EXPORT_PAYS', 1e-9)
    done = predict(Classifier(model, cfg), images, tmp_path / 'a.csv',
                   engine=engine, resume=True)
    assert done.rows == 7
    assert done.engine == dict(
        auto='torch channels_last', torch='torch')[engine]


@pytest.mark.parametrize('where', ['below', 'here'])
def test_images_that_were_replaced_are_noticed(where, tmp_path, monkeypatch):
    folder = pictures(tmp_path / 'images', count=10)
    monkeypatch.chdir(folder)
    images = find_images([folder if where == 'below' else '*.png'])
    half(tmp_path / 'a.csv', images)
    os.utime(folder / '3.png', (1, 1))
    with pytest.raises(ValueError, match='begun otherwise: images'):
        run(tmp_path / 'a.csv', images, resume=True)


def test_a_table_that_is_there_stays(tmp_path):
    out = tmp_path / 'a.csv'
    out.write_text('mine', encoding='utf-8')
    for resume in (False, True):
        with pytest.raises(FileExistsError, match='force=True') as error:
            run(out, resume=resume)
        one_line(error)
    half(out, force=True)
    assert out.read_text(encoding='utf-8') == 'mine'
    with pytest.raises(FileExistsError):  # until it may be replaced
        run(out, resume=True)
    assert out.read_text(encoding='utf-8') == 'mine'
    assert run(out, resume=True, force=True).rows == 10
    assert len(table(out)) == 10


def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch):
    for out, kwargs, told in (
            ('a.txt', {}, r'\.csv, \.json, \.parquet'),
            ('no/a.csv', {}, "no folder '.*no'; make it"),
            ('a.csv', dict(batch_size=0), 'batch_size=0 must be 1')):
        with pytest.raises((OSError, ValueError), match=told) as error:
            predict(Stub() if not kwargs else Classifier(*small(tmp_path)),
                    names(), tmp_path / out, **kwargs)
        one_line(error)
    for kwargs in (dict(topk=0), dict(threshold=1.5), dict(label_type='x'),
                   dict(threshold=float('nan')), dict(output_type='x')):
        with pytest.raises(ValueError, match=next(iter(kwargs))) as error:
            Columns(**kwargs)
        one_line(error)
    scorer = Stub()
    for classes in (['a', 'a', 'b', 'c', 'd'], ['score_2', *'abcd'],
                    ['image', *'abcd']):
        scorer.classes = classes
        with pytest.raises(ValueError, match='two columns: use label_type'):
            run(tmp_path / 'a.csv', scorer=scorer,
                columns=Columns(all_classes=True))
    with pytest.raises(ValueError, match='none of 3 images can be read: '
                       r"'bad0.png' \(no image\)") as error:
        run(tmp_path / 'a.csv', names(3, (0, 1, 2)))
    one_line(error)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with pytest.raises(ImportError, match=r'pip install "gap_plugin\[predict'
                       ) as error:
        run(tmp_path / 'a.parquet')
    one_line(error)
    assert not [*tmp_path.glob('a.*')]


def small(tmp_path):
    images = pictures(tmp_path / 'small', count=2)
    cfg = config(images, CV2, stock(RESNET, LINEAR))
    return built(cfg), cfg


def test_scores_that_are_not_finite_are_refused(tmp_path):
    model, cfg = small(tmp_path)
    model.head.fc.weight.data[0] = float('nan')
    with pytest.raises(ValueError, match="'0.png' are NaN or infinite"):
        predict(Classifier(model, cfg), find_images([tmp_path / 'small']),
                tmp_path / 'a.csv', engine='torch')
    assert not (tmp_path / 'a.csv').exists()


def test_names_that_are_not_as_many_are_left_out(tmp_path):
    scorer = Stub()
    scorer.classes = ['a', 'b']
    with pytest.warns(UserWarning, match='2 names of classes for 5 scores'):
        run(tmp_path / 'a.csv', scorer=scorer)
    assert table(tmp_path / 'a.csv')['label'].dtype == int
    scorer.classes = None
    with pytest.warns(UserWarning, match='neither .* names the classes'):
        run(tmp_path / 'b.csv', scorer=scorer)
    with pytest.warns(UserWarning, match='topk=9: there are 5 classes'):
        run(tmp_path / 'c.csv', columns=Columns(topk=9))


# which images

@pytest.fixture
def tree(tmp_path):
    """A folder as people have it."""
    root = tmp_path / 'photos'
    for name in ('b.jpg', 'a.PNG', 'sub/c.jpg', 'sub/deep/d.jpg', 'sub/e.txt',
                 '.hidden/f.jpg', '.g.jpg', 'x[1]/h.jpg', 'sub/deep/i.bmp'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(root / name, 'PNG')
    (root / 'sub' / 'up').symlink_to(root)
    (root / 'z.jpg').symlink_to(root / 'b.jpg')
    return root


ALL = ['a.PNG', 'b.jpg', 'sub/c.jpg', 'sub/deep/d.jpg', 'sub/deep/i.bmp',
       'x[1]/h.jpg']


def test_folders_are_searched(tree):
    with pytest.warns(UserWarning, match='1 of 7 files .* passed over: .txt'):
        found = find_images([tree])
    assert found.names == ALL
    assert [*found] == [os.path.join(tree, name) for name in ALL]


@pytest.mark.parametrize('pattern, expected', [
    ('**/*.jpg', ['b.jpg', 'sub/c.jpg', 'sub/deep/d.jpg', 'x[1]/h.jpg']),
    ('*.jpg', ['b.jpg']), ('sub/**', [
        # by the link, which leads to what is not below it
        'sub/c.jpg', 'sub/deep/d.jpg', 'sub/deep/i.bmp', 'sub/up/a.PNG',
        'sub/up/b.jpg', 'sub/up/x[1]/h.jpg']),
    ('s*/**/d*/*', ['sub/deep/d.jpg', 'sub/deep/i.bmp']),
    ('**/deep/**/*.b?p', ['sub/deep/i.bmp']), ('x[[]1]/*', ['x[1]/h.jpg']),
    ('[ab].*', ['a.PNG', 'b.jpg'])])
@pytest.mark.filterwarnings('ignore:1 of')
def test_patterns_are_searched(pattern, expected, tree, monkeypatch):
    found = find_images([f'{tree}/{pattern}'])
    assert [os.path.relpath(path, tree).replace(os.sep, '/')
            for path in found] == expected
    monkeypatch.chdir(tree)
    assert [os.path.normpath(path) for path in find_images([pattern])] == [
        os.path.normpath(name) for name in expected]
    assert not any(name.startswith(('.', '/')) for name in found.names)


def test_lists_are_read(tree, tmp_path, monkeypatch):
    lines = ['b.jpg', 'sub/c.jpg 3', 'sub\\deep\\d.jpg 1\r', '', 'no.jpg',
             ' a.PNG ', 'https://x.org/a b.jpg']
    wanted = ['b.jpg', 'sub/c.jpg', 'sub/deep/d.jpg', 'no.jpg', 'a.PNG',
              'https://x.org/a b.jpg']
    for folder in (tree, tmp_path):  # beside its images, and elsewhere
        listed = folder / 'list.txt'
        listed.write_text('\n'.join(lines), encoding='utf-8')
        monkeypatch.chdir(tree if folder == tmp_path else tmp_path)
        found = find_images([listed])
        assert found.names == wanted
        assert found[0] == os.path.join(tree, 'b.jpg')
        assert found[5] == wanted[5]
    with pytest.warns(UserWarning, match='1 images are named more than once'):
        listed.write_text('b.jpg\nb.jpg 1', encoding='utf-8')
        assert find_images([listed]).names == ['b.jpg']
    (tmp_path / 'plain').write_bytes((tree / 'b.jpg').read_bytes())
    assert find_images([tmp_path / 'plain']).names == ['plain']


def test_several_things_have_one_folder(tree):
    found = find_images([tree / 'sub' / 'deep', tree / 'b.jpg'])
    assert found.names == ['sub/deep/d.jpg', 'sub/deep/i.bmp', 'b.jpg']
    assert all(os.path.isfile(path) for path in found)


@pytest.mark.parametrize('name, told', [
    ('nothing', 'not there: name a folder'), ('no*', 'has no images'),
    ('sub/*.txt', "has no images among 1 files, such as '.*e.txt'"),
    ('empty', 'has no images'), ('empty.txt', 'lists no images')])
def test_no_images_are_told(name, told, tree):
    (tree / 'empty').mkdir()
    (tree / 'empty.txt').write_text('\n', encoding='utf-8')
    with pytest.raises((OSError, ValueError), match=told) as error:
        find_images([f'{tree}/{name}'])
    one_line(error)


# the command, and exported files

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A config, a checkpoint of it with names of classes, and photos."""
    folder = tmp_path_factory.mktemp('trained')
    photos = pictures(folder / 'photos')
    pictures(folder / 'photos' / 'sub', start=1)
    cfg = config(photos, [dict(type='TimmTestTransform'), PACK], ours())
    cfg.custom_imports = dict(imports=['gap_plugin'])
    del cfg.test_dataloader.dataset['classes']
    cfg.test_dataloader.dataset.pipeline.insert(0, LOAD)
    cfg.dump(str(folder / 'config.py'))
    torch.save(dict(state_dict=built(cfg, 3.).state_dict(), meta=dict(
        dataset_meta=dict(classes=['a', 'b,', 'c', 'd', 'e']))),
        folder / 'model.pth')
    return folder


def command(folder, *args, ok=True, **kwargs):
    return main('predict', folder / 'config.py', folder / 'model.pth',
                folder / 'photos', *args, ok=ok, **kwargs)


def test_the_command_writes_a_table(trained, tmp_path):
    out = tmp_path / 'a.csv'
    told = command(trained, '--out', out, '--topk', 2, '--engine', 'torch',
                   '-j', 2)
    assert told.splitlines()[-1] == str(out)
    assert 'images   14 in ' in told
    assert 'rows     14' in told
    found = table(out)
    assert list(found) == ['image', 'label', 'score', 'label_2', 'score_2']
    assert found['image'].tolist() == [
        *(f'{i}.png' for i in range(7)), *(f'sub/{i}.png' for i in range(7))]
    cfg = Config.fromfile(trained / 'config.py')
    model = build_classifier(cfg, str(trained / 'model.pth'), whole=True)
    _, scores = of_all(Classifier(model, cfg), trained / 'photos',
                       tmp_path / 'b.parquet')
    np.testing.assert_array_equal(
        found['score'].to_numpy(np.float32), scores.max(1))
    assert found['label'].tolist() == [
        ['a', 'b,', 'c', 'd', 'e'][i] for i in scores.argmax(1)]
    told = command(trained, '--out', out, ok=False)
    assert 'error: --out' in told and '--force' in told


def test_weights_and_pipeline_are_what_is_gone_on_with(tmp_path):
    model, cfg = small(tmp_path)
    first = Classifier(model, cfg).identity()
    assert Classifier(model, cfg).identity() == first
    other = cfg.copy()
    other.test_dataloader.dataset.pipeline[1].scale = 40
    assert Classifier(model, other).identity() != first
    with torch.no_grad():
        model.head.fc.bias[0] += 1
    assert Classifier(model, cfg).identity() != first


def test_images_that_cannot_be_read_are_named(trained, tmp_path):
    photos = pictures(tmp_path / 'photos', count=3)
    (photos / 'x.png').write_text('no', encoding='utf-8')
    told = main('predict', trained / 'config.py', trained / 'model.pth',
                photos, '--out', tmp_path / 'a.json', ok=False)
    assert "skipped 'x.png': it is no image that Pillow knows" in told
    assert '1 of 4 images cannot be read, and are not in the table.' in told
    assert len(table(tmp_path / 'a.json')) == 3


def test_pictures_are_drawn(trained, tmp_path):
    out, maps = tmp_path / 'a.csv', tmp_path / 'maps'
    photos = pictures(tmp_path / 'photos', count=2)
    (photos / 'x.png').write_text('no', encoding='utf-8')
    main('predict', trained / 'config.py', trained / 'model.pth', photos,
         '--out', out, '--cam', maps, ok=False)
    assert sorted(path.name for path in maps.iterdir()) == [
        '0.png', '1.png', 'contact_sheet.png']
    told = command(trained, '--out', tmp_path / 'b.csv', '--cam', maps,
                   ok=False)
    assert '--cam' in told and 'holds files' in told
    assert not (tmp_path / 'b.csv').exists()


def test_mistakes_of_the_command_are_told(trained, tmp_path, monkeypatch):
    out = ('--out', tmp_path / 'a.csv')
    for args, told in (
            (['nothing.pth', trained / 'photos'], 'nothing.pth'),
            ([trained / 'model.pth', trained / 'none'], 'are not there'),
            ([trained / 'model.pth'], 'there are no IMAGES'),
            ([trained / 'model.pth', trained / 'photos', '--topk', 0],
             '--topk')):
        text = main('predict', trained / 'config.py', *args, *out, ok=False)
        assert told in text
        assert len([line for line in text.splitlines()
                    if line.startswith('gap-plugin') or 'error' in line]) == 1
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert 'one process' in command(trained, *out, ok=False)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('kind', ['ours', 'stock'])
@pytest.mark.parametrize('spoilt', ['without', 'other'])
def test_a_checkpoint_of_another_model_is_refused(kind, spoilt, tmp_path):
    """MMEngine leaves by chance what does not fit, with a line in its log."""
    images = pictures(tmp_path / 'images', count=2)
    cfg = config(images, *reversed(CASES[kind]))
    state = built(cfg).state_dict()
    for name in [name for name in state if name.startswith('head')]:
        if spoilt == 'other':
            state[name] = torch.cat([state[name]] * 2)
        else:
            del state[name]
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='does not fit .*head') as error:
        build_classifier(cfg, str(tmp_path / 'a.pth'), whole=True)
    one_line(error)


def test_a_checkpoint_of_all_weights_needs_no_others(tmp_path):
    images = pictures(tmp_path / 'small', count=2)
    cfg = config(images, *reversed(CASES['ours']))
    model = built(cfg)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    cfg.model.backbone.update(pretrained=False, checkpoint_path='none.pth')
    found = build_classifier(cfg, str(tmp_path / 'a.pth'), whole=True)
    for name, value in found.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert cfg.model.backbone.checkpoint_path == 'none.pth'
    torch.save(dict(state_dict={
        name: value for name, value in model.state_dict().items()
        if 'backbone' not in name}), tmp_path / 'b.pth')
    with pytest.raises(ValueError, match='weights missing'):
        build_classifier(cfg, str(tmp_path / 'b.pth'), whole=True)


def test_what_is_no_classifier_is_refused(tmp_path):
    _, cfg = small(tmp_path)
    with pytest.raises(ValueError, match='Linear is no classifier'):
        Classifier(torch.nn.Linear(1, 1), cfg)
    model = stock(RESNET, LINEAR)
    del model['head']['num_classes']
    model['head'] = dict(type='MultiTaskHead', task_heads=dict(
        a=dict(type='LinearClsHead', num_classes=5),
        b=dict(type='LinearClsHead', num_classes=2)), in_channels=64)
    with pytest.raises(ValueError, match='MultiTaskHead does not predict'
                       ) as error:
        predict(Classifier(MODELS.build(model), cfg),
                find_images([tmp_path / 'small']), tmp_path / 'a.csv')
    one_line(error)


@pytest.fixture(scope='module')
def exported(trained):
    """The model of ``trained`` as files: of photos, and of prepared ones."""
    for name, flags in (('photos', []), ('inputs', ['--no-preprocessing'])):
        main('export', trained / 'config.py', trained / 'model.pth', '--out',
             trained / f'{name}.onnx', '--images', 3, *flags)
    return trained


@pytest.mark.parametrize('kind, limit', [('photos', .005), ('inputs', 1e-4)])
def test_a_file_predicts_what_its_checkpoint_does(kind, limit, exported,
                                                  tmp_path, monkeypatch):
    pytest.importorskip('onnxscript')
    file, columns = exported / f'{kind}.onnx', Columns(all_classes=True)
    cfg = Config.fromfile(exported / 'config.py')
    model = build_classifier(cfg, str(exported / 'model.pth'), whole=True)
    images = find_images([exported / 'photos'])
    predict(Classifier(model, cfg), images, tmp_path / 'a.parquet', columns)
    done = predict(ExportedClassifier(file, cfg), images,
                   tmp_path / 'b.parquet', columns)
    assert done.engine.startswith('onnxruntime')
    expected, found = (table(tmp_path / f'{x}.parquet') for x in 'ab')
    assert list(found) == list(expected)
    assert found['image'].tolist() == expected['image'].tolist()
    names = ['a', 'b,', 'c', 'd', 'e']
    np.testing.assert_allclose(found[names], expected[names], atol=limit,
                               rtol=0)
    assert expected[names].to_numpy().std(0).max() > 5 * limit
    looked_for = cfg.copy()  # and not looked for, to read a file
    looked_for.model.backbone.update(pretrained=True, checkpoint_path='none')
    ExportedClassifier(file, looked_for)
    assert looked_for.model.backbone.checkpoint_path == 'none'
    args = [file, exported / 'photos', '--out', tmp_path / 'c.csv']
    if kind == 'photos':  # which needs no config, in a process of its own
        monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
        main('predict', *args)
        np.testing.assert_array_equal(
            table(tmp_path / 'c.csv')['score'].to_numpy(np.float32),
            found['score'])
    else:
        assert 'name the config' in main('predict', *args, ok=False)
    for flags, told in ((['--cam', tmp_path / 'maps'], '--cam is of a'),
                        (['--engine', 'torch'], '--engine torch is of a'),
                        (['--output-type', 'logit'], '--output-type')):
        told_by = main('predict', exported / 'config.py', *args, *flags,
                       '--force', ok=False)
        assert told in told_by
    other = config(images.root and Path(images.root), TIMM, ours())
    other.model.backbone.img_size = 64
    another = cfg.copy()
    another.model.backbone.model_name = 'test_efficientnet'
    with pytest.raises(ValueError, match="of 'test_resnet'.* builds 'test_e"):
        ExportedClassifier(file, another)
    if kind == 'inputs':
        with pytest.raises(ValueError, match='takes images of .*32'):
            predict(ExportedClassifier(file, other), images,
                    tmp_path / 'd.csv')
