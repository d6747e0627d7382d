"""A name is data: of a folder, a class, a network, a file."""

import os
import random
import shlex

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS

from commands import DIGITS, last_line, main
from errors import one_line
from folders import images
from gap_plugin.cli.building import load_config
from gap_plugin.cli.console import typed
from gap_plugin.cli.test import flags
from gap_plugin.config_writer import NewConfig, write_config
from gap_plugin.ranking import RankingOptions, measure
from gap_plugin.ranking.options import base_config

#: MMEngine's text runs it, where it stands in a config as Python writes it.
RUNS = ("""{{$A:\\|\\'+str(__import__("os").system("touch${IFS}PWNED")),#}}""")

PIECES = ['{{', '}}', '{', '}', '$A:', '_base_.model', 'fileBasename', "'",
          '"', '"""', '\\', '\\n', '\\x7b', '#', '%s', '%', '\ufeff', '\u202e',
          '\u2028', '\x85', '\x1b', ' ', '\t', 'ü', '猫', '😀', '`', ';', '0']

_random = random.Random(0)
HOSTILE = [
    RUNS, '{{ fileBasename }}', '{{ fileDirname }}', '{{_base_.model}}',
    '{{$HOME:x}}', "{{'$HOME:x'}}", '{{{{$A:}}}}', '{{{ fileBasename }}}',
    ' lead', 'trail ', '\ttab', '\ufeffmark', '\u2028line', 'a\\', '\\{{a',
    "'", '"""', '#', 'coding: utf-7', '$(touch PWNED)', '%(a)s', '\u202eright',
    'a 0', '~', *(''.join(_random.choices(PIECES, k=6)) for _ in range(40))]

#: Ends of lines, which a folder's name may hold and a list may not.
LINES = ['a\nimport os', 'a\rb', '\n']


def read(request):
    """The config of a request, as the commands read it; nothing has run."""
    write_config(request)
    cfg = Config.fromfile(str(request.path))
    assert not os.path.exists('PWNED')
    return cfg


def loaded(cfg, side):
    """Names and labels of the images that a dataset of a config has."""
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(dict(cfg[f'{side}_dataloader'].dataset,
                                  serialize_data=False))
    return {(info['img_path'], int(info['gt_label'])) for info in map(
        dataset.get_data_info, range(len(dataset)))}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('A', 'changed')
    return tmp_path


@pytest.mark.parametrize('split', [True, False])
def test_classes_keep_their_names(split, here):
    names = sorted(HOSTILE)
    root = here / 'data'
    for side in ('train', 'val') if split else ('', ):
        for name in names:
            images(root / side / name, 2)
    cfg = read(NewConfig('test_vit', root, out=here / 'c.py'))
    for side in ('train', 'val'):
        assert cfg[f'{side}_dataset'].classes == names
        found = loaded(cfg, side)
        assert len(found) == len(names) * (2 if split else 1)
        for path, label in found:
            assert os.path.isfile(path)
            assert os.path.basename(os.path.dirname(path)) == names[label]


def test_data_roots_and_networks_keep_their_names(here):
    for name in [*HOSTILE, *LINES]:
        root = here / 'roots' / name
        for label in 'ab':
            images(root / 'train' / label, 1)
            images(root / 'val' / label, 1)
        model = 'test_vit' if name in LINES else f'local-dir:{name}'
        cfg = read(NewConfig(model, root, out=here / 'c.py', force=True))
        text = (here / 'c.py').read_text(encoding='utf-8')
        assert text.replace('\n', '').isprintable()
        assert cfg.model.backbone.model_name == model
        assert cfg.train_dataset.data_root == str(root)
        assert len(loaded(cfg, 'val')) == 2
    for name in LINES:
        with pytest.raises(ValueError, match='more than one line'):
            NewConfig(f'local-dir:{name}', here)


def test_lists_and_their_images_keep_their_names(here):
    root = here / 'data'
    for i, name in enumerate(HOSTILE):
        images(root / name, 2, 2 * i)
    (here / 'names.txt').write_text('\n'.join(HOSTILE), encoding='utf-8')
    expected = []
    for j, side in enumerate(('train', 'val')):
        expected.append({(os.path.join(root, name, f'{2 * i + j}.png'), i)
                         for i, name in enumerate(HOSTILE)})
        (here / side).write_text(''.join(
            f'{name}/{2 * i + j}.png {i}\n'
            for i, name in enumerate(HOSTILE)), encoding='utf-8')
    for name in (*HOSTILE[::3], *LINES):
        lists = [(here / side).rename(here / f'{name}.{side}')
                 for side in ('train', 'val')]
        cfg = read(NewConfig(
            'test_vit', root, train_list=lists[0], val_list=lists[1],
            classes=here / 'names.txt', out=here / f'{name}.py', force=True))
        assert cfg.val_dataset.classes == HOSTILE
        if name in (RUNS, LINES[0]):
            for side, images_of in zip(('train', 'val'), expected,
                                       strict=True):
                assert {(os.path.normpath(path), label) for path, label
                        in loaded(cfg, side)} == images_of
        for side, path in zip(('train', 'val'), lists, strict=True):
            path.rename(here / side)


def test_options_keep_the_spaces_of_a_path():
    options = dict(zip('abcdef', (
        '/my data/x', ' ', '1, 2', '[(1, 2), a b]', '0.5', "' True '"),
        strict=True))
    args = flags().parse_args(['c', 'f', '--cfg-options', *(
        f'{key}={value}' for key, value in options.items())])
    assert args.cfg_options == dict(
        a='/my data/x', b=' ', c=[1, 2], d=[(1, 2), 'ab'], e=.5, f=' True ')
    words = shlex.split(typed(args))
    assert flags().parse_args(['c', 'f', *words]).cfg_options == \
        args.cfg_options


def test_networks_of_like_names_are_ranked_apart(here, monkeypatch):
    def figures(log, work, name, *_):
        return dict(accuracy=len(measured), metric='top1', images_per_s=1.,
                    params_m=1., features=1, img_size=8,
                    **measured.append(name) or {})

    measured = []
    monkeypatch.setattr(measure, 'isolated', figures)
    names = ['local-dir:a b', 'local-dir:a_b']
    for _ in range(2):
        rows = list(measure.rank(names, RankingOptions(here, str(DIGITS))))
        assert [row['model'] for row in rows] == names
    assert measured == names * 2  # the last one alone is kept


#: Names that no file of text can hold.
UNDECODABLE = os.fsdecode(b'caf\xe9')


def test_a_name_that_cannot_be_carried_is_refused_by_name(here):
    for case, (root, name) in enumerate((
            (UNDECODABLE, 'a'), ('root', UNDECODABLE),
            *(('root', name) for name in LINES))):
        for label in (name, 'b'):
            images(here / str(case) / root / label, 2)
        with pytest.raises(ValueError, match='the name') as error:
            write_config(NewConfig('test_vit', here / str(case) / root,
                                   out=here / 'c.py'))
        odd = name if root == 'root' else root
        assert repr(odd)[1:-1] in one_line(error)
        assert not list(here.glob('c*'))
    root = here / '2' / 'root'
    (root / LINES[0]).rename(root / 'a')
    for path in (here / 'names', here / 'list'):
        path.write_bytes(b'caf\xe9 0\n')
    with pytest.raises(ValueError, match=r"'.*list' is not UTF-8 \(byte 3\)"):
        write_config(NewConfig(
            'test_vit', root, train_list=here / 'list',
            val_list=here / 'list', out=here / 'c.py'))
    (here / 'list').write_text('a/0.png 0\nb/0.png 1\n')
    with pytest.raises(ValueError, match=r"'.*names' is not UTF-8"):
        write_config(NewConfig(
            'test_vit', root, train_list=here / 'list', classes=here /
            'names', val_list=here / 'list', out=here / 'c.py'))
    assert not list(here.glob('c*'))


def test_lists_of_windows_are_read(here):
    for name in 'ab':
        images(here / 'data' / name, 2)
    text = 'a\\{0}.png 0\r\nb\\{0}.png  1 \r\n\r\n'
    (here / 'plain').write_text('a/1.png 0\nb/1.png 1\n')
    (here / 'windows').write_bytes(b'\xef\xbb\xbf' + text.format(0).encode())
    (here / 'names').write_bytes(b'\xef\xbb\xbfone\r\ntwo\r\n')
    cfg = read(NewConfig(
        'test_vit', here / 'data', train_list=here / 'windows',
        val_list=here / 'plain', classes=here / 'names', out=here / 'c.py'))
    assert cfg.train_dataset.classes == ['one', 'two']
    for side, i in (('train', 0), ('val', 1)):
        assert loaded(cfg, side) == {
            (str(here / 'data' / name / f'{i}.png'), label)
            for label, name in enumerate('ab')}
    # one that MMPretrain reads as it is stays the user's own
    assert cfg.val_dataset.ann_file == str(here / 'plain')
    assert cfg.train_dataset.ann_file == str(here / 'c_train.txt')


def test_a_config_that_cannot_be_decoded_is_named(here):
    for name, content in (('latin', b"a = 'caf\xe9'"),
                          ('mark', b'\xef\xbb\xbfa = 1')):
        (here / f'{name}.py').write_bytes(content)
        for command in (['train', here / f'{name}.py'],
                        ['rank', '--models', 'test_vit', '--config',
                         here / f'{name}.py']):
            line = last_line(main(*command, ok=False))
            assert f'{name}.py' in line and 'UTF-8' in line


def test_nothing_of_a_name_runs_in_the_commands(here):
    classes = sorted([RUNS, '{{ fileBasename }}', '\x1b[2J'])
    for name in classes:
        images(here / 'data' / name, 4)
    config = here / 'c.py'
    text = main('new_config', 'test_vit', '--data-root', here / 'data',
                '--out', config, '--workers', 0)
    assert r'\x1b[2J' in text and '\x1b' not in text
    args = flags().parse_args([str(config), 'none'])
    cfg = load_config(args)
    assert cfg.train_dataset.classes == classes
    # what a run leaves in its work dir and its checkpoints
    cfg.dump(here / 'dumped.py')
    for again in (Config.fromfile(str(here / 'dumped.py')),
                  Config.fromstring(cfg.pretty_text, '.py')):
        assert again.to_dict() == cfg.to_dict()
    options = RankingOptions(here / 'out', data_root=here / 'data')
    assert base_config(options).val_dataset.classes == classes
    assert not [path for path in here.rglob('PWNED')]


def test_ordinary_names_are_written_as_they_are(here):
    for name in ('Übermut', '猫', "d'or"):
        images(here / 'data' / name, 2)
    read(NewConfig('test_vit', here / 'data', out=here / 'c.py'))
    text = (here / 'c.py').read_text(encoding='utf-8')
    assert text.startswith('# test_vit, pooled, ')
    assert """["d'or", 'Übermut', '猫']""" in text
