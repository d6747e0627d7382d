"""A model as one file: it gives what the model gives, or there is none."""

import copy
import json
import re
import sys

import numpy as np
import onnx
import pytest
import skimage.data
import timm
import torch
from mmengine.dataset import Compose, default_collate
from mmengine.registry import init_default_scope
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import MODELS
from onnx import TensorProto, helper
from PIL import Image

import runs
from commands import ROOT, main
from errors import one_line
from gap_plugin import LinearHead, TimmFeatureBackbone, timm_test_pipeline
from gap_plugin.datasets.pipelines import test_steps as steps_of
from gap_plugin.export import checking, classifier, export_onnx, photo_graph
from gap_plugin.export.checking import AVERAGE, compare
from gap_plugin.export.onnx import (
    fixed_copy,
    open_onnx,
    read_metadata,
    session,
    write_onnx,
)
from gap_plugin.export.photo_graph import PhotoGraph, prepend
from gap_plugin.export.pipeline import split_pipeline
from gap_plugin.export.scores import Scores
from gap_plugin.features.images import build_dataset
from gap_plugin.timm_network import DataSettings
from gap_plugin.visualization import class_activation_map
from networks import ABSENT, TINY, full, images

PHOTOS = {
    'astronaut': skimage.data.astronaut(),
    'coffee, odd sides': skimage.data.coffee()[:399, :599],
    'panorama': skimage.data.coffee()[100:160],
    'tower': skimage.data.chelsea()[:, 200:231],
    'eight pixels': skimage.data.astronaut()[100:108, 200:208],
    'noise': np.random.default_rng(0).integers(0, 256, (97, 211, 3),
                                               np.uint8),
}


def settings(**given):
    return DataSettings(**{
        **dict(size=(64, 64), interpolation='bicubic', crop_pct=0.875,
               crop_mode='center', mean=(0.485, 0.456, 0.406),
               std=(0.229, 0.224, 0.225)), **given})


def empty_network(shape):
    """An ONNX model that gives what it is given."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT,
                                            ['batch', *shape])
              for name in ('pixels', 'scores')]
    return helper.make_model(helper.make_graph(
        [helper.make_node('Identity', ['pixels'], ['scores'])], 'network',
        values[:1], values[1:]), ir_version=10,
        opset_imports=[helper.make_opsetid('', 20)])


def both_ways(steps, photo, **preprocessor):
    """Pixels that the pipeline gives, and that its graph gives, 0 to 255."""
    loaded = photo[..., ::-1] if photo.shape[2] == 3 else photo[..., 0]
    pipeline = Compose([*steps, dict(type='PackInputs')])
    part = ClsDataPreprocessor(**preprocessor)
    packed = pipeline(dict(img=np.ascontiguousarray(loaded)))
    (expected, ) = part(default_collate([packed]))['inputs']
    network = empty_network(expected.shape)
    prepend(network, PhotoGraph(split_pipeline(pipeline)[1], part,
                                tuple(expected.shape)))
    ((found, ), ) = session(network.SerializeToString(), 'it', 1).run(
        None, dict(images=photo[None]))
    std = np.reshape(preprocessor.get('std', [1.]), (-1, 1, 1))
    return expected.numpy() * std, found * std


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


@pytest.mark.parametrize('photo', PHOTOS.values(), ids=list(PHOTOS))
@pytest.mark.parametrize('given', [
    dict(), dict(interpolation='bilinear'), dict(interpolation='nearest'),
    dict(size=(65, 65), crop_pct=0.9), dict(crop_mode='squash'),
    dict(crop_mode='squash', size=(48, 80), crop_pct=0.75),
    dict(crop_mode='border'), dict(crop_mode='border', size=(48, 80)),
    dict(crop_pct=1.15), dict(crop_pct=1.), dict(size=(224, 224))
], ids=str)
def test_the_graph_gives_the_pixels_of_the_pipeline(given, photo):
    made = settings(**given)
    expected, found = both_ways(steps_of(made), photo, **made.normalisation)
    difference = np.abs(expected - found)
    assert difference.max() < 2.01
    assert difference.mean() <= AVERAGE[made.interpolation] + 1e-4


@pytest.mark.parametrize('size', [
    (200, 300), (640, 480), (54, 55), (1, 90), (96, 1)])
def test_nearest_takes_the_pixels_that_pillow_takes(size):
    """Its places are added up, so that it is rounding that decides ties."""
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    steps = [dict(type='ResizeEdge', scale=109, edge='short',
                  backend='pillow', interpolation='nearest'),
             dict(type='CenterCrop', crop_size=96)]
    expected, found = both_ways(steps, photo)
    np.testing.assert_array_equal(found, expected)


def test_halves_of_a_crop_go_to_the_even_number():
    """As Python rounds: sides that leave 1, 3, 5 and 7 to crop."""
    steps = [dict(type='CenterCrop', crop_size=(20, 30))]
    for extra in range(9):
        photo = PHOTOS['astronaut'][:30 + extra, :20 + 2 * extra + 1]
        expected, found = both_ways(steps, photo)
        assert np.array_equal(expected, found)


@pytest.mark.parametrize('channels', [1, 3])
def test_the_channels_are_those_of_the_network(channels):
    photo = PHOTOS['astronaut'][..., :channels].copy()
    made = settings(mean=(0.5, ) * channels, std=(0.1, 0.2, 0.3)[:channels])
    for to_rgb in (False, channels == 3):
        expected, found = both_ways(
            steps_of(made), photo,
            **{**made.normalisation, 'to_rgb': to_rgb})
        assert np.abs(expected - found).max() < 2.01


def test_what_is_no_pipeline_of_timm_is_named():
    resize = dict(type='Resize', scale=(32, 32), backend='pillow')
    pack = dict(type='PackInputs')
    for steps, told in (
            ([dict(type='Resize', scale=(32, 32)), pack],
             'Resize resizes by cv2'),
            ([dict(resize, interpolation='lanczos'), pack],
             "interpolation='lanczos'"),
            ([resize, dict(type='RandomFlip', prob=0.), pack], 'RandomFlip'),
            ([dict(type='LoadImageFromFile'), resize, pack],
             'LoadImageFromFile'),
            ([dict(type='RandomApply', transforms=[resize]), pack],
             'RandomApply'),
            ([dict(type='CenterCrop', crop_size=8, auto_pad=True), pack],
             'auto_pad'),
            ([resize], 'ends in Resize')):
        with pytest.raises(ValueError, match=re.escape(told)) as info:
            split_pipeline(Compose(steps))
        one_line(info)
        assert 'preprocessing=False' in str(info.value)
    split_pipeline(Compose(timm_test_pipeline('test_vit')))


def spoilt(model):
    """A model of which no two images or positions look alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*model.named_parameters(),
                            *model.named_buffers()]:
            if value.ndim == 1 and value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.add_(0.2 * (noise.abs() if 'var' in name else noise))
        for value in model.head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model.eval()


def test_columns_are_resized_first_where_pillow_does():
    rng = np.random.default_rng(0)
    for case in range(120):
        photo = rng.integers(0, 256, (*rng.integers(8, 120, 2), 3), np.uint8)
        size = tuple(int(side) for side in rng.integers(8, 120, 2))
        how = ('bicubic', 'bilinear')[case % 2]
        expected, found = both_ways([dict(
            type='Resize', scale=size, backend='pillow', interpolation=how
        )], photo)
        difference = np.abs(expected - found)
        assert difference.max() <= 2, (photo.shape, size)
        assert difference.mean() <= 0.1, (photo.shape, size)


def classify(head=None, **backbone):
    """A classifier of ten digits, in eval mode."""
    torch.manual_seed(0)
    config = runs.model('test_resnet', **backbone)
    return spoilt(MODELS.build(dict(config, head=head or config['head'])))


TIMM = [dict(type='TimmTestTransform', crop_pct=1.), dict(type='PackInputs')]


def digits(model, count=12, pipeline=TIMM, **changes):
    loader = runs.data('test', count, pipeline=pipeline)
    loader['dataset'].update(changes)
    return build_dataset(loader, 'test', model)


def telling_apart(model):
    """Let a model find every class likeliest for some images."""
    dataset = digits(model, 64)
    x = torch.stack([dataset[i]['inputs'] for i in range(64)])
    with torch.no_grad():
        x = model.data_preprocessor(dict(inputs=x))['inputs']
        logits = model(x, mode='tensor')
        layer, scale = model.head.fc, 1 / logits.std(0)
        layer.weight *= scale[:, None]
        layer.bias.copy_((layer.bias - logits.mean(0)) * scale)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint of the first config of the README, and its file."""
    init_default_scope('mmpretrain')
    folder = tmp_path_factory.mktemp('export')
    model, cfg = runs.digits()
    checkpoint, out = folder / 'digits.pth', folder / 'digits.onnx'
    classes = ["zero, '0'", '<script>', '{{ 2 }}', 'dré\n', *'456789']
    telling_apart(model.eval())
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=classes))), checkpoint)
    text = export(checkpoint, out, '--cam', names=classes)
    return model, cfg, checkpoint, out, text, classes


def export(checkpoint, out, *flags, names, ok=True):
    """The command, on digits whose classes are called so."""
    config = checkpoint.with_name('config.py')
    config.write_text(
        f'_base_ = {str(ROOT / "configs/digits/test_nfnet.py")!r}\n'
        f'data = dict(dataset=dict(metainfo=dict(classes={names!r})))\n'
        'test_dataloader = data\nval_dataloader = data\n', encoding='utf-8')
    return main('export', config, checkpoint, '--out', out, *flags, ok=ok)


def predictions(model, dataset):
    """Scores of a model for all images of a dataset, by its own predict."""
    with torch.no_grad():
        return torch.stack([
            model.test_step(default_collate([dataset[i]]))[0].pred_score
            for i in range(len(dataset))]).numpy()


def test_a_file_takes_photos_and_gives_the_scores_of_the_model(trained):
    model, cfg, _, out, text, classes = trained
    assert 'checked  on 32 images: pixels ' in text
    assert 'same top-1' in text
    dataset = digits(model, 355)
    expected = predictions(model, dataset)
    run = open_onnx(out, 1)
    assert [(x.name, x.type) for x in run.get_inputs()] == [
        ('images', 'tensor(uint8)')]
    assert [x.name for x in run.get_outputs()] == ['scores', 'maps']
    photos = np.stack([dataset.get_data_info(i)['img'] for i in range(355)])
    found = run.run(['scores'], dict(images=photos))[0]
    assert len(np.unique(expected.argmax(1))) > 2
    assert np.abs(found - expected).max() < 0.005
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    about = read_metadata(run)
    assert about['classes'] == classes
    assert about['network'] == 'test_nfnet'
    assert about['scores'] == 'softmax' and about['input'] == 'photos'
    assert about['image_size'] == [32, 32] and about['channels'] == 3
    assert about['mean'] == model.data_preprocessor.mean.flatten().tolist()
    assert about['versions']['timm'] == timm.__version__


def test_photos_of_any_size_and_number_go_in(trained):
    run = open_onnx(trained[3], 1).run
    for photo in PHOTOS.values():
        alone = run(None, dict(images=photo[None]))
        several = run(None, dict(images=np.stack([photo[::-1], photo])))
        for one, two in zip(alone, several, strict=True):
            assert one.shape[0] == 1 and two.shape[0] == 2
            np.testing.assert_allclose(two[1:], one, rtol=1e-4, atol=1e-5)


def test_the_lines_of_the_readme_read_a_photo(trained, tmp_path, capsys):
    text = (ROOT / 'tools' / 'README.md').read_text(encoding='utf-8')
    code = re.search(r'```python\n(import json\nimport numpy.*?)```', text,
                     re.S)[1]
    assert len(code.splitlines()) <= 12 and 'gap_plugin' not in code
    model, cfg, _, out, _, classes = trained
    # turned on its side, as telephones store photos
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(PHOTOS['coffee, odd sides'])
    photo.save(tmp_path / 'photo.png', exif=exif)
    dataset = digits(model, 1, [dict(type='LoadTimmImage'), *TIMM])
    packed = dataset.pipeline(dict(img_path=str(tmp_path / 'photo.png')))
    with torch.no_grad():
        (sample, ) = model.test_step(default_collate([packed]))
    expected = sample.pred_score
    code = code.replace('photo.jpg', str(tmp_path / 'photo.png')).replace(
        'model.onnx', str(out))
    found = {}
    exec(code, found)  # noqa: S102 of our own README
    np.testing.assert_allclose(found['scores'][0], expected, atol=0.005)
    assert classes[int(expected.argmax())] in capsys.readouterr().out


def test_normalised_images_go_in_without_preprocessing(tmp_path):
    model = classify()
    dataset = digits(model, 5, runs.PIPELINE)  # none of timm's
    before = copy.deepcopy(model.state_dict())
    report = export_onnx(model, dataset, tmp_path / 'a.onnx', logits=True,
                         preprocessing=False, count=4)
    assert report.images == 4 and report.network <= 1e-5
    assert report.pixels is None
    run = open_onnx(tmp_path / 'a.onnx', 1)
    assert [x.shape for x in run.get_inputs()] == [['batch', 3, 32, 32]]
    assert [x.name for x in run.get_outputs()] == ['scores']
    x = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        expected = model(x, mode='tensor').numpy()
    found = run.run(None, dict(images=x.numpy()))
    assert compare((expected, ), found) <= 1e-5
    about = read_metadata(run)
    assert about['scores'] == 'logits' and about['input'] == 'normalised'
    assert about['classes'] is None and about['channel_order'] == 'RGB'
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_maps_have_the_logit_as_their_mean(tmp_path):
    model = classify(img_size=96)
    export_onnx(model, digits(model, 4), tmp_path / 'normalised', cam=True,
                logits=True, preprocessing=False)
    x = torch.randn(2, 3, 96, 96)
    logits, maps = open_onnx(tmp_path / 'normalised', 1).run(
        None, dict(images=x.numpy()))
    np.testing.assert_allclose(maps.mean((2, 3)), logits, atol=1e-3)
    assert compare((class_activation_map(model, x).numpy(), ),
                   (maps, )) < 1e-4
    assert maps.std((2, 3)).max() > 1e-3


STOCK = dict(
    type='ImageClassifier',
    backbone=dict(type='MobileNetV3', arch='small_075'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=432))


@pytest.mark.parametrize('config', [
    runs.model(with_cp=True, channels_last=True, frozen_stages='all'),
    runs.model(in_channels=5), full(runs.model('test_vit', with_cp=True)),
    full(STOCK)], ids=['resnet', 'bands', 'vit', 'stock'])
def test_models_of_all_kinds_go_in(config, tmp_path):
    """Whatever the config says of training, and of channels."""
    torch.manual_seed(0)
    model = spoilt(MODELS.build(config))
    channels = config['backbone'].get('in_channels', 3)
    x = torch.randn(4, channels, 32, 32)
    model.eval()
    report = export_onnx(model, Bands(x), tmp_path / 'a.onnx', count=4,
                         preprocessing=False)
    assert report.network < 1e-4
    (found, ) = open_onnx(tmp_path / 'a.onnx', 1).run(
        None, dict(images=x.numpy()))
    with torch.no_grad():
        expected = model(x, mode='tensor').softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


class Bands:
    """A dataset of images that are packed, and nothing else."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return dict(inputs=self.images[row])


def test_a_multi_label_head_gives_its_own_scores(tmp_path):
    model = classify(head=dict(type='MultiLabelLinearClsHead', num_classes=10,
                               in_channels=96))
    dataset = digits(model, 6)
    export_onnx(model, dataset, tmp_path / 'a.onnx')
    run = open_onnx(tmp_path / 'a.onnx', 1)
    assert read_metadata(run)['scores'] == 'sigmoid'
    photos = np.stack([dataset.get_data_info(i)['img'] for i in range(6)])
    (found, ) = run.run(None, dict(images=photos))
    np.testing.assert_allclose(found, predictions(model, dataset), atol=5e-3)
    assert found.sum(1).max() > 1.1


def test_a_head_that_predicts_in_another_way_is_refused(tmp_path,
                                                        monkeypatch):
    model = classify()
    monkeypatch.setattr(
        LinearHead, '_get_predictions', lambda self, score, samples: [
            sample.set_pred_score(each.sigmoid()) for each, sample in zip(
                score, samples or runs_samples(len(score)), strict=True)])
    with pytest.raises(ValueError, match='predicts other scores') as info:
        export_onnx(model, digits(model, 4), tmp_path / 'a.onnx')
    one_line(info)


def runs_samples(count):
    from mmpretrain.structures import DataSample
    return [DataSample() for _ in range(count)]


def sabotaged(monkeypatch, what):
    """Make something go wrong on the way into the file."""
    if what == 'pixels':
        monkeypatch.setitem(photo_graph._RESIZE, 'bicubic', dict(
            mode='cubic', cubic_coeff_a=-1.5, antialias=1))
    elif what == 'crop':
        monkeypatch.setattr(PhotoGraph, '_crop', lambda self, step, x: (
            self._op('Slice', x, self._integers(1, 1), self._integers(
                33, 33), self._integers(2, 3))))
    else:
        trace = classifier.traced

        def traced(module, *args):
            module = copy.deepcopy(module)
            with torch.no_grad():
                module.model.head.fc.weight[0] *= 1.001
            return trace(module, *args)

        monkeypatch.setattr(classifier, 'traced', traced)


@pytest.mark.parametrize('what, told', [
    ('network', 'logits by '), ('pixels', 'pixels by '),
    ('crop', 'pixels by ')])
def test_a_file_that_is_off_is_not_written(what, told, tmp_path,
                                           monkeypatch):
    sabotaged(monkeypatch, what)
    model = classify()
    dataset = digits(model, 6, [dict(
        type='TimmTestTransform', crop_pct=0.75, interpolation='bicubic'),
        TIMM[1]])
    (tmp_path / 'a.onnx').write_text('as it was')
    with pytest.raises(ValueError, match=f'differs from .*{told}') as info:
        export_onnx(model, dataset, tmp_path / 'a.onnx')
    one_line(info)
    assert [f.name for f in tmp_path.iterdir()] == ['a.onnx']
    assert (tmp_path / 'a.onnx').read_text() == 'as it was'


def test_scores_that_are_no_numbers_are_off_too():
    report = checking.Report(4, float('nan'))
    with pytest.raises(ValueError, match='logits by nan'):
        report.check()
    report = checking.compare_scores(
        checking.Report(1, 0.), np.array([[.6, .4]]), np.array([[.4, .6]]),
        (.005, .02))
    assert report.top1 == 1
    with pytest.raises(ValueError, match='likeliest class of 1'):
        report.check()
    near = checking.compare_scores(
        checking.Report(1, 0.), np.array([[.501, .499]]),
        np.array([[.499, .501]]), (.005, .02))
    assert near.top1 == 0 and near.check() is None


def test_the_attention_of_the_users_model_stays_as_it_is(tmp_path):
    backbone = TimmFeatureBackbone('test_vit').eval()
    block = backbone.timm_model.blocks[0].attn
    fused = block.fused_attn
    assert fixed_copy(backbone).timm_model.blocks[0].attn.fused_attn is False
    assert block.fused_attn is fused is bool(timm.layers.use_fused_attn())


#: The quickest to export of other modules.
QUICK = ('test_byobnet', 'test_vit_relpos', 'cs3darknet_focus_s',
         'cspnext_tiny', 'dla46x_c', 'cpubone_nano', 'deit_tiny_patch16_224',
         'lcnet_035', 'ghostnet_050', 'regnetx_002', 'repghostnet_050',
         'efficientvit_b0', 'edgenext_xx_small', 'starnet_s050', 'shvit_s1',
         'swin_tiny_patch4_window7_224')


@pytest.mark.parametrize('name', [
    *TINY, *(full(name) for name in QUICK if name not in ABSENT)])
def test_a_network_gives_the_same_by_onnxruntime(name, tmp_path):
    """tools/benchmarks/export_coverage.py does it for every module."""
    torch.manual_seed(0)
    model = spoilt(MODELS.build(runs.model(name, img_size=None)))
    module = Scores(model, cam=True).eval()
    x = images(name, 3)
    write_onnx(module, (x[:2], ), tmp_path / 'a.onnx',
               outputs=module.outputs)
    with torch.no_grad():
        expected = [y.numpy() for y in module(x)]
    found = open_onnx(tmp_path / 'a.onnx', 1).run(
        None, dict(images=x.numpy()))
    assert compare(expected[1:], found[1:]) <= 1e-4
    assert expected[2].std((2, 3)).max() > 1e-3


def test_a_guard_of_torch_is_none_of_an_image(monkeypatch):
    backbone = TimmFeatureBackbone('test_resnet').eval()
    stem = type(backbone.timm_model.conv1[0])
    whole = stem.forward

    def forward(self, x):
        if x.sum() > 0:  # which a trace cannot know
            return whole(self, x)
        return whole(self, -x)

    monkeypatch.setattr(stem, 'forward', forward)
    x = torch.zeros(2, 3, 64, 64)  # not its own size
    with pytest.raises(RuntimeError, match='data-dependent') as info:
        torch.export.export(backbone, (x, ), strict=False)
    assert 'cannot take an image' not in str(info.value)


def test_a_torch_program_gives_the_same(trained, tmp_path):
    model, cfg, checkpoint, _, _, classes = trained
    out = tmp_path / 'digits.pt2'
    text = export(checkpoint, out, '--format', 'torch', '--cam',
                  names=classes)
    assert 'network 0' in text or 'network ' in text
    extra = {'about.json': ''}
    program = torch.export.load(out, extra_files=extra).module()
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        scores, maps = program(x)
        expected = model(x, mode='tensor').softmax(1)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps, class_activation_map(model, x),
                               rtol=1e-3, atol=1e-3)
    about = json.loads(extra['about.json'])
    assert about['classes'] == classes and about['input'] == 'normalised'


def test_mistakes_are_told_in_one_line(trained, tmp_path, monkeypatch):
    model, cfg, checkpoint, out, _, classes = trained

    def told(*flags, at=checkpoint, names=classes):
        text = export(at, *flags, names=names, ok=False)
        assert not list(tmp_path.glob('a.onnx*'))
        return text

    new = tmp_path / 'a.onnx'
    assert 'exists: name another one, or use --force' in told(out)
    assert 'writes a .onnx file' in told(tmp_path / 'a.pt2')
    assert 'no --no-preprocessing, which --format onnx takes' in told(
        tmp_path / 'a.pt2', '--format', 'torch', '--no-preprocessing')
    assert 'make it first' in told(tmp_path / 'none' / 'a.onnx')
    (tmp_path / 'folder.onnx').mkdir()
    assert 'is a folder' in told(tmp_path / 'folder.onnx')
    assert '--images 0 must be 1 or more' in told(new, '--images', 0)
    other = tmp_path / 'other.pth'
    assert 'name one that training has written' in told(new, at=other)
    torch.save(dict(state_dict=classify().state_dict(), meta={}), other)
    assert 'error: ' in told(new, at=other)
    half = {name: value for name, value in model.state_dict().items()
            if not name.startswith('head')}
    torch.save(dict(state_dict=half, meta={}), other)
    assert "weights missing: 'head.fc.weight'" in told(new, at=other)
    assert 'was trained on other classes' in told(new, names=[
        *'0123456789'])
    assert 'compared with the model on images' in told(
        new, '--cfg-options', 'test_dataloader=None', 'val_dataloader=None')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert 'pip install "gap_plugin[export]"' in told(new)


def test_an_int8_file_is_held_to_its_accuracy(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = MODELS.build(runs.model(img_size=64)).eval()
    telling_apart(model)
    dataset, out = digits(model, 40), tmp_path / 'a.onnx'
    photos = np.stack([dataset.get_data_info(i)['img'] for i in range(40)])
    labels = np.array([dataset.get_data_info(i)['gt_label']
                       for i in range(40)])
    expected = predictions(model, dataset).argmax(1)
    monkeypatch.setattr(checking, 'INT8', 1.)
    report = export_onnx(model, dataset, out, int8=digits(model, 20))
    run = open_onnx(out, 1)
    assert [x.shape for x in run.get_inputs()] == [
        ['batch', 'height', 'width', 3]]
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count('QuantizeLinear') > 5
    found = run.run(['scores'], dict(images=photos))[0].argmax(1)
    assert report.accuracies == ((expected == labels).mean(),
                                 (found == labels).mean())
    assert report.top1 == (found != expected).sum() < 20
    monkeypatch.setattr(checking, 'INT8', -1.)
    out.unlink()
    with pytest.raises(ValueError, match='accuracy by ') as info:
        export_onnx(model, dataset, out, int8=digits(model, 20))
    one_line(info)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match='no exact maps'):
        export_onnx(model, dataset, out, int8=dataset, cam=True)


@pytest.mark.full
def test_int8_costs_less_than_a_point_of_real_weights(lite0_weights,
                                                      tmp_path):
    from sklearn.linear_model import LogisticRegression
    model = MODELS.build(runs.model(
        'tf_efficientnet_lite0', img_size=64,
        checkpoint_path=str(lite0_weights))).eval()
    train, test = (build_dataset(runs.data(split, None, pipeline=TIMM), split,
                                 model) for split in ('train', 'test'))

    def features(dataset):
        batch = default_collate([dataset[i] for i in range(len(dataset))])
        x = model.data_preprocessor(batch)['inputs']
        with torch.no_grad():
            return torch.cat([model.extract_feat(part)[-1] for part in
                              x.split(64)]).numpy()

    labels = [train.get_data_info(i)['gt_label'] for i in range(len(train))]
    fitted = LogisticRegression(C=0.1, max_iter=300).fit(
        features(train), labels)
    with torch.no_grad():
        model.head.fc.weight.copy_(torch.from_numpy(fitted.coef_))
        model.head.fc.bias.copy_(torch.from_numpy(fitted.intercept_))
    whole = export_onnx(model, test, tmp_path / 'a.onnx')
    assert whole.network < 1e-5 and whole.scores < 0.005
    report = export_onnx(model, test, tmp_path / 'b.onnx', int8=train)
    assert report.images == len(test)
    assert report.accuracies[0] > 0.93
    assert report.accuracies[1] > report.accuracies[0] - 0.01
    size = [(tmp_path / name).stat().st_size for name in ('a.onnx', 'b.onnx')]
    assert size[1] < 0.4 * size[0]


def test_what_is_no_onnx_file_is_named(tmp_path):
    path = tmp_path / 'a.onnx'
    with pytest.raises(FileNotFoundError, match='is not a file'):
        open_onnx(path)
    path.write_text('no model')
    with pytest.raises(ValueError, match='cannot run .*a.onnx') as info:
        open_onnx(path)
    one_line(info)
