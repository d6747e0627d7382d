"""Maps on images: where they lie, what is drawn, and the command."""

import re
import warnings

import numpy as np
import pytest
import skimage.data
import torch
from mmengine.dataset import Compose
from mmpretrain.models.heads import MultiLabelLinearClsHead
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from torch import nn

from commands import DIGITS, main
from errors import one_line
from gap_plugin import Digits, class_activation_map
from gap_plugin.datasets import bind_pipeline, source_of
from gap_plugin.visualization import (
    Explainer,
    Location,
    Panel,
    as_array,
    draw_maps,
    draw_panels,
    locate,
    numbers_of,
    picture,
    sheet,
)
from gap_plugin.visualization.drawing import as_text
from gap_plugin.visualization.gallery import SHEET, places
from networks import full
from runs import data, digits, runner

#: Pixels of the image that the box may be off.
CLOSE = 1.5


def pushed(steps):
    """A function that puts an image through transforms."""
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    return lambda image: pipeline(dict(
        img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2]))[
            'img']


def timm(**options):
    return [dict(type='TimmTestTransform', model_name='test_resnet',
                 img_size=options.pop('img_size', 160), **options)]


def centre(image, resized, size):
    """The box of a centre crop, behind a resize: (width, height) each."""
    offset = [round((have - want) / 2) for have, want in zip(
        resized, size, strict=True)]
    scale = [have / after for have, after in zip(image, resized,
                                                 strict=True)]
    return tuple((place + add) * by for add in (0, size[0])
                 for place, by in zip(offset, scale, strict=True))


#: Pipeline -> the box that it takes of an image of 640 x 480.
PIPELINES = {
    'center': (timm(crop_pct=.875),
               centre((640, 480), (242, 182), (160, 160))),
    'center over 1': (timm(crop_pct=1.25),
                      centre((640, 480), (170, 128), (160, 160))),
    'squash': (timm(crop_pct=.8, crop_mode='squash'),
               (64, 48, 576, 432)),
    'squash oblong': (timm(crop_pct=1., crop_mode='squash',
                           img_size=(96, 160)), (0, 0, 640, 480)),
    'border': (timm(crop_pct=1., crop_mode='border'), (0, -80, 640, 560)),
    'edge and crop': ([
        dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
        dict(type='CenterCrop', crop_size=224)],
        centre((640, 480), (341, 256), (224, 224))),
    'edge by opencv': ([dict(type='ResizeEdge', scale=100, edge='long')],
                       (0, 0, 640, 480)),
    'resize': ([dict(type='Resize', scale=(224, 224))], (0, 0, 640, 480)),
    'resize and pad': ([
        dict(type='Resize', scale=(224, 224), keep_ratio=True),
        dict(type='Pad', size=(224, 224), pad_val=255)],
        (0, 0, 640, 640)),
    'crop alone': ([dict(type='CenterCrop', crop_size=224)],
                   (208, 128, 432, 352)),
    'nothing': ([], (0, 0, 640, 480)),
    'normalised': ([
        dict(type='Resize', scale=(224, 224)),
        dict(type='Normalize', mean=[123., 116., 103.], std=[58., 57., 57.],
             to_rgb=True)], (0, 0, 640, 480)),
}


@pytest.mark.parametrize('name, shape', [
    (name, shape) for name in PIPELINES for shape in ((480, 640, 3),
                                                      (480, 640))
    if name != 'normalised' or len(shape) == 3])  # it is of colours
def test_the_box_is_that_of_the_pipeline(name, shape):
    steps, expected = PIPELINES[name]
    location = locate(pushed(steps), np.zeros(shape, np.uint8))
    assert location.box == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize('size', [(40, 30), (333, 217), (1500, 2100),
                                  full((4000, 6000))])
def test_the_box_is_found_at_every_size(size):
    transform = pushed(timm(crop_pct=.875))
    location = locate(transform, np.zeros((*size, 3), np.uint8))
    height, width = size
    resized = [side * 182 // min(size) for side in (width, height)]
    assert location.box == pytest.approx(
        centre((width, height), resized, (160, 160)), abs=CLOSE)


@pytest.mark.parametrize('steps, matrix', [
    ([dict(type='RandomFlip', prob=1.)], [[-1, 0, 64], [0, 1, 0]]),
    ([dict(type='RandomFlip', prob=1., direction='vertical')],
     [[1, 0, 0], [0, -1, 48]]),
    ([dict(type='Rotate', angle=90., prob=1., random_negative_prob=0.,
           pad_val=0)], [[0, 1, 8], [-1, 0, 56]])])
def test_what_is_turned_is_found_turned(steps, matrix):
    location = locate(pushed(steps), np.zeros((48, 64, 3), np.uint8))
    np.testing.assert_allclose(location.matrix, matrix, atol=.5)


@pytest.mark.parametrize('bend', [
    lambda image: np.where(np.arange(64)[:, None] < 32, image,
                           image[:, ::-1]),
    lambda image: np.roll(image, 20, 0),
    lambda image: image[:1, :1].repeat(9, 0).repeat(9, 1),
    lambda image: np.zeros_like(image)])
def test_what_is_no_affine_map_is_refused(bend):
    with pytest.raises(ValueError, match='cannot be told') as info:
        locate(bend, np.zeros((48, 64, 3), np.uint8))
    one_line(info)


def drawn(panels, columns=2):
    """What each panel shows, without its title and its frame."""
    figure = draw_panels(panels, columns)
    whole = as_array(figure)
    height, found = whole.shape[0], []
    for axes in figure.axes[:len(panels)]:
        box = axes.get_window_extent()
        rows = slice(height - int(box.y1) + 2, height - int(box.y0) - 2)
        found.append(whole[rows, int(box.x0) + 2:int(box.x1) - 2].astype(int))
    return found


WHITE = np.full((100, 200, 3), 255, np.uint8)
#: For a class at the upper left, against it at the lower right.
CORNERS = np.array([[8., 0., 0., 0.], [0., 0., 0., -8.]])


def redness(pixels, row, column):
    """Of a place of a picture: over 0 for red, below for blue."""
    height, width = pixels.shape[:2]
    red, _, blue = pixels[int(row * height), int(column * width)]
    return red - blue


def test_colour_is_the_sign_and_opacity_the_value():
    (pixels, weak) = drawn([Panel(WHITE, 'a', CORNERS),
                            Panel(WHITE, 'b', CORNERS / 10)])
    assert redness(pixels, .1, .05) > 60
    assert redness(pixels, .9, .95) < -60
    assert pixels[-3, 3].min() > 250  # of no value: the image
    # the scale is that of all: a class that is not there looks empty
    assert weak[3, 3].min() > 220 and weak.min() > 200


def test_a_map_covers_the_crop_alone_and_turns_with_it():
    crop = Location(np.array([[.25, 0, 100], [0, .25, 25]]), (200, 200))
    turned = Location(np.array([[-1., 0, 200], [0, 1, 0]]), (100, 200))
    (inside, mirrored) = drawn([Panel(WHITE, 'a', CORNERS, crop),
                                Panel(WHITE, 'b', CORNERS, turned)])
    assert redness(inside, .3, .53) > 30  # at the crop's upper left
    assert inside[:, :inside.shape[1] * 45 // 100].min() > 250
    assert inside[:inside.shape[0] // 5].min() > 250
    assert redness(mirrored, .1, .95) > 60
    assert redness(mirrored, .9, .05) < -60


def test_a_border_is_shown_as_far_as_the_crop_goes():
    location = Location(np.array([[1., 0, 0], [0, 1, -50]]), (200, 200))
    figure = draw_maps(WHITE, CORNERS[None], ['a'], location)
    assert figure.axes[1].get_ylim() == (150, -50)


NAMES = ['$\\frac{1}{', 'two\nlines', '<script>', '"\'{{', 'caf\u00e9 \udcff',
         'x' * 300, '', '\x1b[31m']


@pytest.mark.parametrize('name', NAMES)
def test_a_name_is_drawn_as_it_is(name):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        as_array(draw_maps(WHITE, CORNERS[None], [name], heading=name,
                           note=name))
    assert len(as_text(name)) < 70 and '\x1b' not in as_text(name)


def test_what_no_font_has_is_one_warning():
    figure = draw_maps(WHITE, CORNERS[None], ['\U0001fae8\u732b\u72d7'])
    with pytest.warns(UserWarning) as caught:
        as_array(figure)
    assert ['no font' in str(each.message) for each in caught] == [True]


def test_drawing_leaves_no_figure_of_pyplot():
    import matplotlib.pyplot as plt
    before = dict(plt.rcParams), plt.get_fignums(), plt.get_backend()
    as_array(draw_maps(WHITE, CORNERS[None], ['a']))
    assert (dict(plt.rcParams), plt.get_fignums(), plt.get_backend()
            ) == before
    with pytest.raises(ValueError, match='one each'):
        draw_maps(WHITE, CORNERS[None], [])


@pytest.fixture(scope='module')
def model():
    """A classifier of digits on images of 96 x 96: maps of 3 x 3."""
    found, _ = digits({'model.backbone.img_size': 96})
    nn.init.normal_(found.head.fc.weight)
    return found.eval()


def bound(model, *steps):
    pipeline = Compose([step if callable(step) else TRANSFORMS.build(step)
                        for step in (*steps, dict(type='PackInputs'))])
    bind_pipeline(pipeline, source_of(model))
    return pipeline


FILE = dict(type='LoadTimmImage')
FOLLOW = dict(type='TimmTestTransform')


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp('photo') / 'cat.png'
    Image.fromarray(skimage.data.chelsea()).save(path)
    return str(path)


@pytest.mark.parametrize('steps', [
    [FOLLOW], [dict(type='RandomResizedCrop', scale=96, backend='pillow'),
               dict(type='RandomFlip', prob=.5)]])
def test_the_place_is_where_the_pixels_come_from(model, photo, steps):
    """The input is the image, read at the places that are found."""
    seen = []
    handle = model.backbone.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][0]))
    found = Explainer(model, bound(model, FILE, *steps))(
        dict(img_path=photo))
    handle.remove()
    image = torch.from_numpy(found.image).permute(2, 0, 1)[None].float()
    (height, width), (rows, columns) = image.shape[2:], found.location.size
    y, x = torch.meshgrid(torch.arange(rows) + .5, torch.arange(columns) + .5,
                          indexing='ij')
    places = torch.stack([x, y, torch.ones_like(x)], -1).double() @ (
        torch.from_numpy(found.location.matrix).T)
    grid = 2 * places / torch.tensor([width, height]) - 1
    read = nn.functional.grid_sample(image, grid[None].float(),
                                     align_corners=False)[0]
    mean, std = (getattr(model.data_preprocessor, key)
                 for key in ('mean', 'std'))
    theirs = seen[0] * std + mean
    # smoothed, for one of the two reads single pixels
    read, theirs = (nn.functional.avg_pool2d(each, 4)
                    for each in (read, theirs))
    assert (read - theirs).abs().mean() < 4
    assert (read.flip(2) - theirs).abs().mean() > 12


def test_an_explanation_is_of_what_the_model_says(model, photo):
    found = Explainer(model, bound(model, FILE, FOLLOW))(
        dict(img_path=photo, gt_label=4))
    (sample, ) = model.test_step(dict(zip(('inputs', 'data_samples'), (
        [each] for each in bound(model, FILE, FOLLOW)(
            dict(img_path=photo)).values()), strict=True)))
    inputs = model.data_preprocessor(dict(inputs=[bound(model, FILE, FOLLOW)(
        dict(img_path=photo))['inputs']]), False)['inputs']
    whole = class_activation_map(model, inputs)[0]
    best = int(sample.pred_label)
    assert found.classes[:2] == [best, 4] and best != 4
    torch.testing.assert_close(found.maps, whole[found.classes])
    torch.testing.assert_close(found.predicted, whole[best])
    assert found.right is False and found.maps.shape[1:] == (3, 3)
    logits = whole.mean((1, 2))
    assert found.titles[0] == (
        f'predicted: class {best}, logit\xa0{logits[best]:.1f}')
    assert found.titles[1] == f'true: class 4, logit\xa0{logits[4]:.1f}'
    assert re.match(r'absent: class \d, logit\s', found.titles[2])
    assert found.verdict.startswith('true: class 4\npredicted: class')
    assert (found.image == skimage.data.chelsea()).all()


def test_classes_can_be_chosen_by_name(model, photo):
    names = ['one', 'two'] + [f'{i} more' for i in range(7)] + ['two']
    explainer = Explainer(model, bound(model, FILE, FOLLOW), names,
                          numbers_of(['two', '3 more'], names))
    found = explainer(dict(img_path=photo))
    assert found.classes == [1, 9, 5] and found.right is None
    assert found.titles[2].split(': ')[-1].startswith('3 more, logit')
    with pytest.raises(ValueError, match="did you mean 'two'") as info:
        numbers_of(['tow'], names)
    one_line(info)
    with pytest.raises(ValueError, match='no names'):
        numbers_of(['two'], None)
    assert numbers_of(['3'], None) == [3]
    for wrong in (dict(names=names[:3]), dict(topk=11), dict(topk=0),
                  dict(classes=[3, 10])):
        with pytest.raises(ValueError, match='10'):
            Explainer(model, None, **wrong)


def test_several_labels_are_all_named(model, photo):
    several = digits({'model.backbone.img_size': 96})[0].eval()
    several.head = MultiLabelLinearClsHead(10, several.head.in_channels,
                                           thr=.5).eval()
    nn.init.normal_(several.head.fc.weight)
    found = Explainer(several, bound(several, FILE, FOLLOW))(
        dict(img_path=photo, gt_label=[2, 3]))
    assert {2, 3} <= set(found.classes)
    assert found.verdict.startswith('true: class 2, class 3\n')
    assert found.verdict.count('(') == sum(
        each.mean() > 0 for each in class_activation_map(
            several, several.data_preprocessor(dict(inputs=[bound(
                several, FILE, FOLLOW)(dict(img_path=photo))['inputs']]),
                False)['inputs'])[0])


def test_arrays_and_what_cannot_be_placed_are_drawn(model):
    info = Digits('test').get_data_info(3)
    found = Explainer(model, bound(model, FOLLOW))(info)
    assert (found.image == info['img']).all()
    assert found.location.box == pytest.approx((0, 0, 8, 8), abs=.6)
    blue = np.zeros((9, 9, 3), np.uint8)
    blue[..., 2] = 255
    for turned in (False, True):  # what it takes for its colours, we do
        model.data_preprocessor.to_rgb, array = turned, blue
        if turned:
            array = blue[..., ::-1]
        found = Explainer(model, bound(model, FOLLOW))(dict(img=array))
        assert (found.image == blue).all()
    bent = bound(model, FOLLOW, lambda results: dict(
        results, img=np.roll(results['img'], 40, 0)))
    found = Explainer(model, bent)(info)
    assert found.image.shape == (96, 96, 3) and 'input' in found.note
    as_array(sheet([found, found]))


def test_what_the_preprocessor_pads_is_part_of_the_input(photo):
    padded, _ = digits({'model.backbone.img_size': 96})
    pipeline = bound(padded.eval(), FILE, FOLLOW)
    plain = Explainer(padded, pipeline)(dict(img_path=photo))
    padded.data_preprocessor.pad_size_divisor = 64
    found = Explainer(padded, pipeline)(dict(img_path=photo))
    assert found.location.size == (128, 128) and found.maps.shape[1:] == (4, 4)
    # on the right and at the bottom
    assert found.location.box[:2] == pytest.approx(plain.location.box[:2])
    assert found.location.box[2] > plain.location.box[2]


def test_tokens_and_factors_are_said(model, photo):
    tokens, _ = digits({'model.backbone.model_name': 'test_vit',
                        'model.backbone.img_size': 96})
    explainer = Explainer(tokens.eval(), bound(tokens, FILE, FOLLOW))
    assert 'evidence read at each token' in explainer(
        dict(img_path=photo)).note


def test_pictures_have_places_of_their_own():
    assert places(['a/b.jpg', 'a/c.tif']) == ['a/b.png', 'a/c.png']
    assert places(['a.jpg', 'a.png', 'b.jpg']) == [
        'a.jpg.png', 'a.png.png', 'b.jpg.png']
    for names in (['a.jpg', 'a.jpg.jpg', 'a.jpg.png', 'A.jpg'],
                  [f'{SHEET}.jpg', 'x/../y.png'], ['http://a/b', '/c', '..']):
        found = places(names)
        assert len({each.casefold() for each in found}) == len(names)
        assert not any(each.startswith((SHEET, '/', '..')) for each in found)


@pytest.fixture(scope='module')
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('run') / 'digits.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=list('0123456789')))), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images in folders of classes, and what is no image."""
    rng = np.random.default_rng(0)
    for name in ('3/a.png', '3/b.jpg', 'other/$c$ \n.png'):
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)
                        ).save(path)
    return tmp_path / 'photos'


SIZE = ('--cfg-options', 'model.backbone.img_size=96')


def test_a_folder_becomes_pictures(checkpoint, folder, tmp_path):
    out = tmp_path / 'maps'
    text = main('cam', DIGITS, checkpoint, folder, '--out', out, *SIZE)
    assert sorted(path.relative_to(out).as_posix()
                  for path in out.rglob('*.png')) == [
        '3/a.png', '3/b.png', f'{SHEET}.png', 'other/$c$ \n.png']
    assert re.search(r'right +\d of 2 images', text)
    for path in out.rglob('*.png'):
        assert np.asarray(Image.open(path)).std() > 10
    assert not list(out.rglob('*.tmp'))


def test_what_cannot_be_read_is_named_and_the_rest_is_drawn(
        checkpoint, folder, tmp_path):
    (folder / '3' / 'bad.png').write_text('no image')
    out = tmp_path / 'maps'
    text = main('cam', DIGITS, checkpoint, folder, '--out', out, *SIZE,
                ok=False)
    assert "skipped '3/bad.png': it is no image" in text
    assert len(list(out.rglob('*.png'))) == 4
    text = main('cam', DIGITS, checkpoint, folder / '3' / 'bad.png', '--out',
                tmp_path / 'none', *SIZE, ok=False)
    assert 'skipped' in text and not (tmp_path / 'none').exists()


def test_some_of_the_images_and_classes(checkpoint, folder, tmp_path):
    out = tmp_path / 'maps'
    text = main('cam', DIGITS, checkpoint, folder, '--out', out, *SIZE,
                '--max-images', 1, '--classes', '7', '2')
    assert 'images   1, evenly spread, of 3' in text
    assert [path.name for path in out.rglob('*.png')] == ['a.png']


def wrong_checkpoint(folder, checkpoint):
    state = torch.load(checkpoint)
    state['state_dict'] = {
        key: value for key, value in state['state_dict'].items()
        if not key.startswith('head')}
    path = folder.parent / 'other.pth'
    torch.save(state, path)
    return [path, folder]


@pytest.mark.parametrize('arguments, said', [
    (lambda f, c: [c, f, '--classes', '33'], "no class '33'"),
    (lambda f, c: [c, f, '--topk', 11], '--topk 11 must be from 1 to 10'),
    (lambda f, c: [c, f, '--max-images', 0], '--max-images 0 must be 1'),
    (lambda f, c: ['gone.pth', f], "'gone.pth' is not there"),
    (lambda f, c: [c, f / 'gone'], 'gone'),
    (wrong_checkpoint, 'head.fc'),
    (lambda f, c: [c, f, '--out', f], 'holds files: name another folder, or '
     'write over what is there with --force'),
    (lambda f, c: [c, f, '--out', f, '--force'], 'is where the images are'),
    (lambda f, c: [c, f, '--out', f / '3' / 'a.png'], 'is a file'),
    (lambda f, c: [c, f, '--cfg-options', 'model.head.num_classes=9'],
     'head.fc')])
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
        checkpoint, folder, tmp_path, arguments, said):
    before = sorted(tmp_path.rglob('*'))
    given = arguments(folder, checkpoint)
    before = sorted(tmp_path.rglob('*'))
    options = () if '--cfg-options' in given else SIZE
    if '--out' not in given:
        given += ['--out', tmp_path / 'maps']
    text = main('cam', DIGITS, *given, *options, ok=False)
    (line, ) = [each for each in text.splitlines() if 'error:' in each]
    assert said in line
    assert sorted(tmp_path.rglob('*')) == before


def test_the_hook_draws_the_same_in_a_test(model, tmp_path):
    run = runner(
        tmp_path, model=model, train_dataloader=None, train_cfg=None,
        optim_wrapper=None, val_dataloader=None, val_cfg=None,
        val_evaluator=None, test_cfg=dict(), test_evaluator=dict(
            type='Accuracy'),
        test_dataloader=data('test', 6, 4, [
            FOLLOW, dict(type='PackInputs')]),
        custom_hooks=[dict(type='ClassActivationHook', interval=5,
                           classes=['3'])])
    run.test()
    found = sorted(tmp_path.rglob('vis_image/*.png'))
    assert [path.stem.split('_')[1] for path in found] == ['0', '5']
    dataset = run.test_dataloader.dataset
    expected = as_array(picture(Explainer(
        model, dataset.pipeline, list('0123456789'), [3])(
            dataset.get_data_info(5))))
    assert (np.asarray(Image.open(found[1])) == expected).all()


def test_the_hook_says_what_it_cannot_draw(model, tmp_path):
    with pytest.raises(ValueError, match='interval'):
        runner(tmp_path, custom_hooks=[dict(
            type='ClassActivationHook', interval=0)])
