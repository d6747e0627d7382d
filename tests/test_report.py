"""The page that finds what to mend: its figures, its names, its limits."""

import csv
import json
import re
import shutil
import sys
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import browser
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from PIL import Image

from commands import DIGITS, last_line, main
from gap_plugin.engine.building import build_classifier
from gap_plugin.features import FeatureStore, extract
from gap_plugin.report import (
    find_splits,
    make_report,
    rank_labels,
    read_curves,
)
from gap_plugin.report.page import shown
from gap_plugin.report.predictions import Predictions, calibration
from gap_plugin.report.run_folder import find_checkpoint, series
from gap_plugin.report.sections import confusion
from gap_plugin.report.suspects import out_of_fold

CLASSES = ('"><img src=x onerror=alert(1)>', '<script>alert(1)',
           'na\u00efve \u202e $x$ {% raw %}', '{{ 7 * 7 }}')
NAMES = ('<b>{}', '"\'>{}', '{{{{ 7 * 7 }}}}{}', 'line\nbreak {}', '{}')
PIPELINE = [dict(type='LoadTimmImage'),
            dict(type='TimmTestTransform', crop_pct=1.0),
            dict(type='PackInputs')]


def write_images(root, train=12, val=8):
    """Images of four classes; some of val are those of train."""
    rng = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (4, 6, 3), np.uint8)
                pixels[..., label % 3] //= 1 + label
                Image.fromarray(pixels).resize((60, 40)).save(
                    folder / f'{NAMES[i % 5].format(i)}.png')
    first = root / 'train' / CLASSES[0] / '4.png'
    image = Image.open(first)
    shutil.copy(first, root / 'val' / CLASSES[0] / 'copied.png')
    shutil.copy(first, root / 'val' / CLASSES[1] / 'relabelled.png')
    image.save(root / 'val' / CLASSES[0] / 'pixels.bmp')
    image.save(root / 'val' / CLASSES[0] / 'near.jpg', quality=95)


def config(root, **model):
    """The config of a small network for these images."""
    cfg = Config.fromfile(DIGITS)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset = dict(
            type='CustomDataset', data_root=str(root), pipeline=PIPELINE,
            data_prefix='val' if split == 'test' else split)
        cfg[f'{split}_dataloader'].batch_size = 16
    cfg.model.head.num_classes = 4
    cfg.model.update(model)
    return cfg


def save(cfg, path, classes=CLASSES):
    """A checkpoint of a model that has seen nothing."""
    init_default_scope('mmpretrain')
    model = build_classifier(cfg)
    with torch.no_grad():  # so that it tells the images apart
        for parameter in model.head.parameters():
            parameter.normal_()
    torch.save(dict(
        meta=dict(dataset_meta=dict(classes=list(classes)), epoch=2),
        state_dict=model.state_dict()), path)


def write_log(folder, name, epochs):
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    rows = []
    for epoch in epochs:
        rows += [dict(lr=.1 / epoch, loss=1. / epoch, time=.1, epoch=epoch,
                      iter=3 * epoch - 1, step=3 * epoch - 1),
                 {'accuracy/top1': 20. * epoch, 'step': epoch}]
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n{"cut o')


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """What a training leaves, of images whose names are code."""
    folder = tmp_path_factory.mktemp('report') / 'work'
    folder.mkdir()
    write_images(folder.parent / 'images')
    cfg = config(folder.parent / 'images')
    cfg.dump(folder / 'nasty.py')
    save(cfg, folder / 'best_accuracy_top1_epoch_2.pth')
    shutil.copy(folder / 'best_accuracy_top1_epoch_2.pth',
                folder / 'epoch_3.pth')
    (folder / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    write_log(folder, '20260101_000000', [1, 2, 3])
    write_log(folder, '20260102_000000', [3, 4])
    return folder


@pytest.fixture(scope='module')
def page(work_dir):
    """The report of it: where it is, and what the command said."""
    text = main('report', work_dir, '--suspects', work_dir / 'suspects.csv')
    path = work_dir / 'report.html'
    return SimpleNamespace(path=path, said=text, html=path.read_text('utf-8'),
                           parts=parsed(path.read_text('utf-8')))


class Parts(HTMLParser):
    """Tags of a page with their attributes, and all of its text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.headings = [], '', []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch('h[1-6]', tag):
            self.headings.append([int(tag[1]), ''])

    def handle_endtag(self, tag):
        if re.fullmatch('h[1-6]', tag):
            self.headings.append(None)

    def handle_data(self, data):
        self.text += data
        if self.headings and self.headings[-1]:
            self.headings[-1][1] += data


def parsed(html):
    parts = Parts()
    parts.feed(html)
    parts.headings = [h for h in parts.headings if h]
    return parts


def test_the_parts_stand_in_their_order(page):
    assert [text for level, text in page.parts.headings if level == 2] == [
        'Accuracy', 'Worst mistakes', 'Suspected label errors',
        'Images in train and val', 'Confusion matrix', 'Calibration',
        'Curves of the training', 'Config and versions']


def test_a_page_can_be_read_without_seeing_it(page):
    levels = [level for level, _ in page.parts.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    tags = Counter(tag for tag, _ in page.parts.tags)
    assert tags['main'] == tags['title'] == tags['nav'] == 1
    for tag, attributes in page.parts.tags:
        if tag == 'img':
            assert attributes['alt']
        if tag == 'th':
            assert attributes['scope'] in ('row', 'col')
        if tag == 'html':
            assert attributes['lang'] == 'en'
    assert tags['table'] == tags['caption'] >= 4


def test_nothing_of_a_page_lies_elsewhere(page):
    ids = Counter(a['id'] for _, a in page.parts.tags if 'id' in a)
    assert set(ids.values()) == {1}
    links = 0
    for tag, attributes in page.parts.tags:
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed',
                           'form', 'base')
        assert not any(name.startswith('on') for name in attributes)
        for name in ('src', 'href'):
            if name in attributes:
                value = attributes[name]
                if value.startswith('#'):
                    assert value[1:] in ids
                    links += 1
                else:
                    assert value.startswith(('data:image/jpeg;base64,',
                                             'data:image/png;base64,',
                                             'data:image/svg+xml;base64,'))
    assert links > 20
    (policy, ) = [a['content'] for t, a in page.parts.tags
                  if a.get('http-equiv') == 'Content-Security-Policy']
    assert policy.startswith("default-src 'none'; img-src data:; style-src ")


def test_names_are_shown_as_they_are(page):
    for name in CLASSES:
        assert shown(name) in page.parts.text
    assert 'val/<script>alert(1)/line\\nbreak 3.png' in page.parts.text
    assert '\u202e' not in page.html
    assert shown('a\tb\nc\x1b\x7f\udcff\u202e\u00e9 <') == (
        'a\\tb\\nc\\x1b\\x7f\\udcff\\u202e\u00e9 <')


CONTRAST = """(() => {
  const number = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.map(v => { v /= 255;
    return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const walk = document.createTreeWalker(document.body,
    NodeFilter.SHOW_TEXT); let worst = [21, '']; let node;
  while (node = walk.nextNode()) {
    if (!node.data.trim() || !node.parentElement.checkVisibility()) continue;
    let under = node.parentElement, back;
    do { back = number(getComputedStyle(under).backgroundColor);
      under = under.parentElement; } while (back[3] === 0 && under);
    if (back[3] === 0) back = [255, 255, 255];
    const two = [light(number(getComputedStyle(node.parentElement).color)
      .slice(0, 3)), light(back.slice(0, 3))].sort((a, b) => b - a);
    const ratio = (two[0] + .05) / (two[1] + .05);
    if (ratio < worst[0]) worst = [ratio, node.data]; }
  return worst; })()"""


def test_a_browser_shows_it_and_asks_for_nothing(page, tmp_path):
    with browser(tmp_path / 'profile') as tab:
        for width in (1280, 390):
            tab.open(page.path, width)
            assert tab.requests() == [page.path.as_uri()]
            assert not tab.complaints()
            assert tab.js('document.scripts.length') == 0
            text = tab.js('document.body.innerText')
            for name in CLASSES:
                assert shown(name) in text
            # as wide as the screen: nothing to scroll to
            assert tab.js('document.documentElement.scrollWidth') == width
            assert tab.js('[...document.images].every(i => i.complete && '
                          'i.naturalWidth > 0)')
            ratio, words = tab.js(CONTRAST)
            assert ratio >= 4.5, words
            # a cell leads to its images
            assert tab.js("""(() => {
                const cell = document.querySelector('.matrix td a');
                const shown = () => getComputedStyle(document.querySelector(
                    cell.hash)).display; const before = shown();
                cell.click(); return [before, shown()]; })()""") == [
                        'none', 'block']
            assert tab.js("document.querySelectorAll('.group:target img')"
                          '.length') > 0
        # by keyboard: the first key leads past the contents
        tab.open(page.path, 1280)
        for kind in ('keyDown', 'keyUp'):
            tab('Input.dispatchKeyEvent', type=kind, key='Tab', code='Tab',
                windowsVirtualKeyCode=9)
        assert tab.js('document.activeElement.className') == 'skip'
        assert tab.js('getComputedStyle(document.activeElement)'
                      '.outlineStyle') == 'solid'
        assert tab.js('document.activeElement.getBoundingClientRect().left'
                      ) >= 0
        # the policy holds: were a name an image elsewhere, none is loaded
        tab.js("""new Promise(done => { const image = new Image();
            image.onerror = image.onload = done;
            image.src = 'http://127.0.0.1:9/x.png'; })""")
        assert 'csp' in [e['params'].get('blockedReason') for e in tab.events
                         if e.get('method') == 'Network.loadingFailed']


def test_its_figures_are_those_of_a_test(page, work_dir):
    told = main('test', work_dir / 'nasty.py',
                work_dir / 'best_accuracy_top1_epoch_2.pth', '--work-dir',
                work_dir.parent / 'other')
    (accuracy, ) = re.findall(r'^accuracy/top1 (\S+)', told, re.M)
    assert f'accuracy/top1 {accuracy}\n' in page.said
    assert f'{accuracy} %' in page.parts.text
    assert last_line(page.said).endswith('report.html')
    # images of the classes, in the two splits
    assert 'best_accuracy_top1_epoch_2.pth, the best' in page.said


def test_copies_are_found_and_near_ones_are_shown(page):
    assert 'copies   3 images of val are in train' in page.said
    assert '3 of 36 images of val are in train, too' in page.parts.text
    assert '1 of them have another label there' in page.parts.text
    text = page.parts.text
    assert text.count('files of the same content') == 2
    assert text.count('equal pixels') == 1
    near = text[text.index('The nearest of the others'):]
    assert near.index('near.jpg') < near.index('Confusion matrix')


def test_suspects_are_a_table_of_all_images(page, work_dir):
    with open(work_dir / 'suspects.csv', encoding='utf-8',
              newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['image', 'label', 'suggested', 'score']
    assert len(rows) == 4 * 20 + 4
    scores = [float(row['score']) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    for row in rows:
        assert row['image'].startswith(str(work_dir.parent / 'images'))
        assert f'/{row["label"]}/' in row['image']
        assert row['suggested'] in CLASSES and row['suggested'] != (
            row['label'])


def test_curves_go_on_where_a_run_went_on(work_dir, page):
    found, unit = series(read_curves(work_dir))
    assert unit == 'epoch' and set(found) == {'lr', 'loss', 'accuracy/top1'}
    assert found['accuracy/top1'] == [(1, 20), (2, 40), (3, 60), (4, 80)]
    assert [round(at, 2) for at, _ in found['loss']] == [.67, 1.67, 2.67,
                                                         3.67]
    assert 'accuracy/top1 ends at 80' in page.parts.text


def test_a_second_report_makes_no_pass(work_dir, page, tmp_path):
    text = main('report', work_dir, '--out', tmp_path / 'again.html')
    assert text.count('from an earlier pass') == 2
    assert 'over the images' not in text
    # but for the names that matplotlib gives to the parts of diagrams
    again, first = (re.sub(
        r'data:image/svg[^"]*| All 84 images are ranked in <bdi>.*?</bdi>\.',
        '', html) for html in (
            (tmp_path / 'again.html').read_text('utf-8'), page.html))
    assert again == first


def test_the_checkpoint_is_the_best_or_the_last(tmp_path):
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(
        save_best=['accuracy/top1', 'loss']))))
    with pytest.raises(ValueError, match='no checkpoint'):
        find_checkpoint(tmp_path, cfg)
    (tmp_path / 'linear_probe.pth').touch()
    assert find_checkpoint(tmp_path, cfg)[1] == 'of a probe'
    (tmp_path / 'epoch_2.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('C:\\runs\\epoch_2.pth')
    path, why = find_checkpoint(tmp_path, cfg)
    assert path.name == 'epoch_2.pth' and why.startswith('the last one')
    for name in ('accuracy_top1_epoch_2', 'loss_epoch_1'):
        (tmp_path / f'best_{name}.pth').touch()
    path, why = find_checkpoint(tmp_path, cfg)
    assert path.name == 'best_accuracy_top1_epoch_2.pth'
    assert why.startswith('the best by accuracy/top1, of 2')


def test_calibration_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([.3] * 4, 500).astype(np.float32)
    found = Predictions(scores, rng.integers(0, 4, 500))
    sure, right = scores.max(1), scores.argmax(1) == found.labels
    expected = 0
    for i in range(15):
        inside = (sure > i / 15) & (sure <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(sure[inside].mean()
                                            - right[inside].mean())
    assert calibration(found).error == pytest.approx(expected)
    assert calibration(found).counts.sum() == 500
    assert found.top(4) == 1 and found.top(1) == right.mean()
    assert found.confusion.sum() == 500
    worst = found.mistakes[0]
    assert found.own[worst] == found.own[~right].min()


def planted(labels, classes, seed, share=.05):
    """Labels of which some are wrong, and which those are."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    found = labels.copy()
    found[rows] += rng.integers(1, classes, len(rows))
    return found % classes, np.isin(np.arange(len(labels)), rows)


def precision(order, wrong):
    """The average precision of a ranking."""
    hits = wrong[order]
    return float((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())


def digits():
    from sklearn.datasets import load_digits
    data = load_digits()
    return data.data.astype(np.float32), data.target


def test_planted_label_errors_stand_first():
    """Of bare pixels; of a network's features, in the full level."""
    features, truth = digits()
    labels, wrong = planted(truth, 10, 0)
    state = torch.get_rng_state()
    found = rank_labels(features, labels, classes=10)
    assert torch.equal(state, torch.get_rng_state())
    assert precision(found.order, wrong) >= .85
    first = found.order[:2 * wrong.sum()]
    assert wrong[first].sum() >= .9 * wrong.sum()
    assert (found.suggested[wrong] == truth[wrong]).mean() > .9
    again = rank_labels(features, labels, classes=10)
    assert np.array_equal(found.order, again.order)


@pytest.mark.full
def test_planted_label_errors_stand_first_by_features(lite0_weights,
                                                      tmp_path):
    text = main('extract', 'digits/tf_efficientnet_lite0', '--work-dir',
                tmp_path, '--cfg-options',
                f'model.backbone.checkpoint_path={lite0_weights}')
    assert '1442 x 1280' in text
    stores = [FeatureStore(tmp_path / 'features' / split)
              for split in ('train', 'val')]
    features, truth = (np.concatenate([getattr(store, name) for store in
                                       stores])
                       for name in ('features', 'labels'))
    for seed in range(2):
        labels, wrong = planted(truth, 10, seed)
        found = rank_labels(features, labels, classes=10, seed=seed)
        assert precision(found.order, wrong) >= .85
        first = found.order[:2 * wrong.sum()]
        assert wrong[first].sum() >= .9 * wrong.sum()


def test_copies_of_an_image_do_not_vouch_for_each_other():
    features, labels = digits()
    features, labels = features[:300], labels[:300].copy()
    labels[:3] = (labels[:3] + 1) % 10  # three copies each of three errors
    rows = np.concatenate([np.arange(300), np.repeat(np.arange(3), 30)])
    alone = rank_labels(features[rows], labels[rows], classes=10)
    grouped = rank_labels(features[rows], labels[rows], rows, classes=10)
    assert (grouped.scores[:3] > .8).all()
    assert (alone.scores[:3] < .6).all()


def test_a_probe_has_not_seen_what_it_is_asked():
    """Of labels by chance it knows nothing, though it could learn them."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2000, generator=chance)
    labels = torch.randint(2, (600, ), generator=chance)
    shares = out_of_fold(x, labels, np.arange(600) % 5, 2, 0)
    assert torch.allclose(shares.sum(1), torch.ones(600), atol=1e-5)
    own = shares[torch.arange(600), labels].mean()
    assert .45 < own < .55


@pytest.mark.parametrize('labels, classes, told', [
    ([0, 1, 0], 2, 'need 5 different images'), ([0] * 9, 1, '2 classes')])
def test_what_cannot_be_ranked_is_told(labels, classes, told):
    with pytest.raises(ValueError, match=told):
        rank_labels(np.eye(len(labels)), np.array(labels), classes=classes)


@DATASETS.register_module()
class Noise(BaseDataset):
    """Images that no compression makes small."""

    METAINFO = dict(classes=tuple('abcdefghij'))

    def load_data_list(self):
        rng = np.random.default_rng(0)
        return [dict(img=rng.integers(0, 256, (100, 100, 3), np.uint8),
                     gt_label=i % 10) for i in range(self.metainfo['count'])]


def noise_config(count):
    cfg = Config.fromfile(DIGITS)
    for split, images in (('train', 20), ('val', count), ('test', count)):
        loader = cfg[f'{split}_dataloader']
        loader.dataset = dict(type='Noise', metainfo=dict(count=images),
                              pipeline=loader.dataset.pipeline)
        loader.setdefault('collate_fn', dict(type='default_collate'))
    return cfg


def test_a_page_of_1000_images_is_at_most_5_mb(tmp_path):
    cfg = noise_config(1000)
    init_default_scope('mmpretrain')
    model = build_classifier(cfg)
    splits = find_splits(cfg, model, 'val')
    for name, split in splits.items():
        split.open(extract(model, cfg, name, tmp_path / name))
    model.train()
    found = make_report(model, cfg, splits)
    assert model.training
    assert 1e6 < len(found.html.encode()) <= 5e6
    # the seed is that of both: as many are the same pixels
    assert found.copies == 20
    parts = parsed(found.html)
    assert 'more pictures are left out' in parts.text
    assert 'val/0' in parts.text and 'train/0' in parts.text
    # the backbone is trained in this config
    assert 'may fit wrong ones' in parts.text


def test_of_many_classes_the_worst_are_in_the_matrix():
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 50
    scores = np.full((1000, 50), .01, np.float32)
    scores[np.arange(1000), labels] = .5
    for row in np.flatnonzero(labels >= 40):  # ten that are mixed up
        scores[row, rng.integers(40, 50)] = .9
    split = SimpleNamespace(rgb=lambda row: None)
    names = SimpleNamespace(classes=[f'c{i}' for i in range(50)],
                            image=lambda split, row: str(row))
    part = confusion(Predictions(scores, labels), split, names)
    assert part['cut'] and len(part['classes']) == 20
    assert {f'c{i}' for i in range(40, 50)} <= set(part['classes'])
    ids = {group['id'] for group in part['groups']}
    for cell in [*part['most'],
                 *(c for row in part['rows'] for c in row['cells'])]:
        assert (cell['id'] in ids) == (cell['count'] > 0)


def test_a_chain_without_an_exact_map_is_told(work_dir, tmp_path):
    head = dict(_delete_=True, type='StackedLinearClsHead', num_classes=4,
                in_channels=192, mid_channels=[8])
    cfg = config(work_dir.parent / 'images')
    cfg.merge_from_dict(dict(model=dict(head=head)))
    cfg.dump(tmp_path / 'stacked.py')
    save(cfg, tmp_path / 'last.pth')
    main('report', tmp_path / 'stacked.py', tmp_path / 'last.pth',
         '--work-dir', tmp_path)
    parts = parsed((tmp_path / 'report.html').read_text('utf-8'))
    assert 'Without maps: head' in parts.text
    assert 'StackedLinearClsHead' in parts.text
    assert 'No log of a training is in' in parts.text
    assert '.png' in parts.text


def error(*args):
    return last_line(main('report', *args, ok=False))


def test_files_are_not_written_over_or_into_nowhere(page, work_dir,
                                                    tmp_path):
    before = page.path.read_bytes()
    assert error(work_dir).endswith(
        'is there already: name another file, or write over it with '
        '--force.')
    assert page.path.read_bytes() == before
    out = tmp_path / 'no' / 'report.html'
    assert 'there is no folder' in error(work_dir, '--out', out)
    assert not out.parent.exists()
    assert 'must end in one of .csv, .json' in error(
        work_dir, '--suspects', tmp_path / 'a.xls')
    for file in ('nasty.py', 'best_accuracy_top1_epoch_2.pth'):
        before = (work_dir / file).read_bytes()
        assert 'must end in .html' in error(work_dir, '--force', '--out',
                                            work_dir / file)
        assert (work_dir / file).read_bytes() == before
    assert 'is a folder' in error(work_dir, '--out', tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_is_told(work_dir, tmp_path):
    assert 'holds no config' in error(tmp_path)
    probe = tmp_path / 'linear_probe.pth'
    probe.touch()
    assert last_line(error(tmp_path)).endswith(
        f'by gap-plugin report CONFIG {probe} --work-dir {tmp_path}')
    probe.unlink()
    shutil.copy(work_dir / 'nasty.py', tmp_path / 'a.py')
    assert 'holds no checkpoint' in error(tmp_path)
    shutil.copy(work_dir / 'nasty.py', tmp_path / 'b.py')
    assert "several configs ('a.py', 'b.py')" in error(tmp_path)
    assert 'name one, or a config and a checkpoint' in error(
        tmp_path / 'a.py')
    assert 'is not there' in error(tmp_path / 'a.py', tmp_path / 'c.pth')
    assert {p.name for p in tmp_path.iterdir()} == {'a.py', 'b.py'}


def test_a_work_dir_of_a_probe_is_enough(tmp_path):
    """And its backbone has seen no labels, if its checkpoint had not."""
    write_images(tmp_path / 'images')
    cfg = config(tmp_path / 'images')
    cfg.dump(tmp_path / 'mine.py')
    save(cfg, tmp_path / 'trained.pth')
    for name, flags, told in (
            ('new', [], False),
            ('tuned', ['--checkpoint', tmp_path / 'trained.pth'], True),
            ('again', ['--checkpoint', tmp_path / 'new/linear_probe.pth'],
             False)):
        folder = tmp_path / name
        main('probe', tmp_path / 'mine.py', '--freeze', '--epochs', 1,
             '--work-dir', folder, *flags)
        assert Config.fromfile(folder / 'mine.py').model == cfg.model
        text = main('report', folder)
        assert 'linear_probe.pth, of a probe' in text
        page = parsed((folder / 'report.html').read_text('utf-8')).text
        assert ('may fit wrong ones' in page) is told, name


def test_a_checkpoint_of_another_config_is_refused(work_dir, tmp_path):
    flags = '--work-dir', tmp_path / 'work'
    cfg = config(work_dir.parent / 'images')
    save(cfg, tmp_path / 'classes.pth', CLASSES[::-1])
    assert 'was trained on other classes' in error(
        work_dir / 'nasty.py', tmp_path / 'classes.pth', *flags)
    cfg.model.backbone.model_name = 'test_vit'
    save(cfg, tmp_path / 'network.pth')
    text = error(work_dir / 'nasty.py', tmp_path / 'network.pth', *flags)
    assert 'the checkpoint does not fit the model' in text
    assert not (tmp_path / 'work' / 'report.html').exists()
    assert not (tmp_path / 'work' / 'features').exists()


@pytest.mark.parametrize('change, told', [
    (dict(model=dict(head=dict(
        _delete_=True, type='MultiLabelLinearClsHead', num_classes=4,
        in_channels=192))), 'has a MultiLabelLinearClsHead: a report is of'),
    (dict(val_dataloader=dict(dataset=dict(with_label=False,
                                           classes=list(CLASSES)))),
     "the images of 'val' have no labels, which a report needs"),
    (dict(val_dataloader=None, val_cfg=None, val_evaluator=None),
     'no val_dataloader'),
])
def test_what_no_report_can_be_made_of_is_told_ahead_of_a_pass(
        work_dir, tmp_path, change, told):
    cfg = config(work_dir.parent / 'images')
    cfg.merge_from_dict(change)
    cfg.dump(tmp_path / 'other.py')
    save(cfg, tmp_path / 'other.pth')
    text = error(tmp_path / 'other.py', tmp_path / 'other.pth', '--work-dir',
                 tmp_path / 'work')
    assert told in text
    assert not (tmp_path / 'work' / 'features').exists()


def test_images_that_are_gone_or_broken_are_told(tmp_path):
    write_images(tmp_path / 'images', 5, 5)
    cfg = config(tmp_path / 'images')
    cfg.dump(tmp_path / 'c.py')
    save(cfg, tmp_path / 'c.pth')
    flags = tmp_path / 'c.py', tmp_path / 'c.pth', '--work-dir', tmp_path
    broken = tmp_path / 'images' / 'val' / CLASSES[3] / '{{ 7 * 7 }}2.png'
    broken.write_bytes(b'no image')
    text = error(*flags)
    assert '1 of 24 images of' in text and '--skip-bad' in text
    assert not (tmp_path / 'report.html').exists()
    main('report', *flags, '--skip-bad')
    parts = parsed((tmp_path / 'report.html').read_text('utf-8'))
    assert '23 images of the split val' in parts.text
    (tmp_path / 'images' / 'train' / CLASSES[0] / '4.png').unlink()
    text = error(*flags, '--out', tmp_path / 'c.html')
    assert 'made otherwise' in text and '--force' in text
    assert not (tmp_path / 'c.html').exists()


def test_what_a_page_needs_is_named(monkeypatch, work_dir):
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    for name in [name for name in sys.modules
                 if name.startswith('gap_plugin.report')]:
        monkeypatch.delitem(sys.modules, name)
    assert error(work_dir).endswith(
        'a report needs jinja2, which is missing: pip install '
        '"gap_plugin[report]".')
