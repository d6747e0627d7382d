"""What users run, with what Windows and macOS lack taken from Linux.

The folders of ``platforms/`` show that something fails there, never that all
works.
"""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PLATFORMS = Path(__file__).parent / 'platforms'
#: Of a Windows of Western Europe, where text goes to files and to a pipe.
CP1252 = dict(TEXT_ENCODING='cp1252', PYTHONIOENCODING='cp1252')
SETTINGS = dict(windows=CP1252, macos={})
CLASSES = ('Käfer', '甲虫')

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith('linux'), reason='imitates on Linux')


def run(platform, *args, ok=True):
    """A process of Python on a platform: all that it prints."""
    path = os.pathsep.join(map(str, (PLATFORMS / platform, ROOT)))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, args)], cwd=ROOT,
        env={**os.environ, **SETTINGS[platform], 'PYTHONPATH': path},
        capture_output=True, encoding='utf-8', errors='replace', check=False,
        timeout=300)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) is ok, text[-3000:]
    return text


@pytest.fixture
def images(tmp_path):
    """A folder of small images in two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        folder = tmp_path / 'data' / name
        folder.mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 100, (32, 32, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(
                folder / f'{name}{i}.png')
    return tmp_path / 'data'


@pytest.mark.full
@pytest.mark.parametrize('platform', SETTINGS)
def test_the_first_command_of_the_readme(platform, tmp_path):
    run(platform, 'tools/train.py', 'configs/digits/test_nfnet.py',
        '--work-dir', tmp_path, '--cfg-options',
        'train_dataloader.dataset.indices=256', 'train_cfg.max_epochs=1')
    last = (tmp_path / 'last_checkpoint').read_text(encoding='utf-8')
    assert Path(last) == tmp_path / 'epoch_1.pth' and Path(last).is_file()
    assert len(list(tmp_path.glob('best_accuracy_top1_*.pth'))) == 1
    assert not list(tmp_path.glob('*.tmp'))


@pytest.mark.full
@pytest.mark.parametrize('platform', SETTINGS)
def test_a_folder_of_images_from_config_to_ranking(platform, tmp_path,
                                                   images):
    config, work = tmp_path / 'config.py', tmp_path / 'work'
    run(platform, 'tools/make_config.py', 'test_resnet', '--data-root',
        images, '--out', config, '--workers', 2, '--epochs', 1, '--img-size',
        32, '--batch-size', 8)
    for name in CLASSES:
        assert repr(name) in config.read_text(encoding='utf-8')
    # a runner of MMEngine would take fork, but on a real Windows
    options = ('--cfg-options', 'model.backbone.pretrained=False',
               'env_cfg.mp_cfg.mp_start_method=spawn')
    run(platform, 'tools/train.py', config, '--work-dir', work, *options)
    checkpoint = work / 'epoch_1.pth'
    assert checkpoint.is_file()
    probe = ('tools/linear_probe.py', config, '--work-dir', work, '--freeze',
             '--epochs', 8, '--checkpoint', checkpoint, '--lr', 0.01)
    text = run(platform, *probe, *options)
    # a brightness is soon learnt
    assert float(re.search(r'accuracy/top1 ([\d.]+)', text)[1]) > 80
    stores = work / 'features'
    before = (stores / 'val' / 'store.json').stat().st_ino
    # another network: its store takes the place of the former one
    run(platform, *probe, '--force', *options,
        'model.backbone.timm_kwargs.drop_rate=0.1')
    assert (stores / 'val' / 'store.json').stat().st_ino != before
    assert sorted(p.name for p in stores.iterdir()) == ['train', 'val']
    out = tmp_path / 'ranking'
    run(platform, 'tools/rank_backbones.py', '--models', 'test_resnet',
        '--no-pretrained', '--config', config, '--out', out, '--epochs', 2,
        *options[::2])
    with open(out / 'ranking.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [(row['model'], row['error']) for row in rows] == [
        ('test_resnet', '')]


IN_USE = """
import numpy as np
from gap_plugin.features import FeatureStore, StoreWriter, remove

def store(folder):
    writer = StoreWriter(folder, 4, 2, 'float32', 4)
    writer.prepare(np.arange(4), list('abcd'), {})
    writer.write(0, np.ones((4, 2)))
    return writer.finish({})

kept = store('train')
try:
    remove('train')
except OSError as error:
    print(error)
print(FeatureStore('train').features.sum(), kept.features.sum())
del kept
remove('train')
print(store('train').features.sum())
"""


def test_a_store_that_is_in_use_is_not_taken_away_on_windows(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(f'import os\nos.chdir({str(tmp_path)!r})\n{IN_USE}',
                      encoding='utf-8')
    lines = run('windows', script).splitlines()
    assert re.fullmatch(r"cannot remove 'train' \(.* is open .*\): close what "
                        r'has it open, .*', lines[0]), lines
    assert lines[1:] == ['8.0 8.0', '8.0']
    assert sorted(os.listdir(tmp_path)) == ['script.py', 'train']
