"""An image is read as timm reads it, whatever it is stored as, or refused."""

import io
import pickle
import threading
import zlib
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend
from mmengine.fileio.backends import backends
from mmpretrain import get_model
from mmpretrain.apis import ImageClassificationInferencer
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from commands import ROOT, last_line, python
from errors import one_line
from folders import folder_options, write_folder
from gap_plugin import LoadTimmImage, TimmFeatureBackbone
from gap_plugin.datasets import loading
from gap_plugin.timm_network import data_source
from networks import full

RNG = np.random.default_rng(0)
COLOUR = Image.fromarray(RNG.integers(0, 256, (13, 17, 3), np.uint8))
DEEP = RNG.integers(0, 1 << 16, (13, 17), np.uint16)


def picture(mode):
    """A picture whose pixels are all different, in any mode."""
    if mode.startswith('I;16'):
        image = Image.fromarray(DEEP)
        return image if mode == 'I;16' else Image.frombytes(
            mode, image.size, DEEP.astype('>u2' if mode[-1] == 'B' else '<u2')
            .tobytes())
    if mode == 'I':
        return Image.fromarray(DEEP.astype(np.int32))
    if mode == 'LAB':
        return Image.merge(mode, COLOUR.split())
    image = COLOUR.convert(dict(La='LA', RGBa='RGBA').get(mode, mode))
    if 'A' in image.getbands():
        image.putalpha(COLOUR.getchannel(0))
    return image.convert(mode)


def load(path, **options):
    done = LoadTimmImage(**options)(dict(img_path=str(path)))
    assert done['img'].dtype == np.uint8 and done['img'].flags.writeable
    assert done['img_shape'] == done['ori_shape'] == done['img'].shape[:2]
    return done['img']


def check(path, image):
    """Compare with what timm makes of a picture that Pillow has opened."""
    if image.mode.startswith('I'):
        grey = (np.array(image) >> 8).astype(np.uint8)
        colour = np.stack([grey] * 3, 2)
    else:  # of these two, Pillow alone finds no way
        via = dict(La='LA', LAB='RGB').get(image.mode)
        colour = np.array(image.convert('LA').convert('RGB')
                          if image.mode == 'La' else image.convert('RGB'))
        grey = np.array((image.convert(via) if via else image).convert('L'))
    np.testing.assert_array_equal(load(path, in_channels=3),
                                  colour[..., ::-1])
    np.testing.assert_array_equal(load(path, in_channels=1), grey)


FILES = [
    *[('png', mode) for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16')],
    *[('tif', mode) for mode in (
        '1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr',
        'LAB', 'I;16', 'I;16B')],
    *[('jpg', mode) for mode in ('L', 'RGB', 'CMYK')],
    ('gif', 'P'), ('bmp', 'RGB'), ('webp', 'RGB'), ('webp', 'RGBA'),
    ('ppm', 'RGB'), ('pgm', 'L'), ('pgm', 'I;16'), ('jp2', 'I;16'),
    ('tga', 'RGBA')]


@pytest.mark.parametrize('suffix, mode', FILES)
def test_a_file_gives_timms_pixels(suffix, mode, tmp_path):
    path = tmp_path / f'a.{suffix}'
    picture(mode).save(path)
    with Image.open(path) as image:
        check(path, image)


@pytest.mark.parametrize('mode', [
    '1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK',
    'YCbCr', 'LAB', 'HSV', 'I;16', 'I;16B', 'I;16L', 'I;16N'])
def test_every_mode_that_a_decoder_may_give(mode, tmp_path, monkeypatch):
    image = picture(mode)
    image.tile = []
    (tmp_path / 'a').touch()
    monkeypatch.setattr(loading.Image, 'open', lambda _: image.copy())
    monkeypatch.setattr(Image.Image, 'tile', [], raising=False)
    check(tmp_path / 'a', image)


def test_16_bits_of_older_versions_of_pillow(tmp_path, monkeypatch):
    image = picture('I')
    image.format, image.tile = 'PNG', []
    (tmp_path / 'a').touch()
    monkeypatch.setattr(loading.Image, 'open', lambda _: image)
    assert (load(tmp_path / 'a', in_channels=1) == DEEP >> 8).all()


@pytest.mark.parametrize('used', [9, 10, 12, 14, 16])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_images_of_some_of_16_bits(used, suffix, tmp_path):
    path = tmp_path / f'a.{suffix}'
    pixels = DEEP >> (16 - used)
    Image.fromarray(pixels).save(path)
    if used <= 12:
        with pytest.raises(ValueError, match=f'uses {used} of its 16 bits.*'
                           'nearly black.*bits=12') as info:
            load(path, in_channels=3)
        assert one_line(info).startswith(repr(str(path)))
    else:
        assert (load(path, in_channels=1) == pixels >> 8).all()
    assert (load(path, in_channels=1, bits=16) == pixels >> 8).all()
    assert (load(path, in_channels=1, bits=used) == DEEP >> 8).all()
    with pytest.raises(ValueError, match=f'uses {used} bits: bits=8 '):
        load(path, bits=8, in_channels=3)


def test_what_pillow_spreads_over_16_bits_is_not_spread_again(tmp_path):
    path = tmp_path / 'a.pgm'
    path.write_bytes(b'P5 17 13 4095\n' + (DEEP >> 4).astype('>u2').tobytes())
    for options in ({}, dict(bits=12)):
        found = load(path, in_channels=1, **options).astype(int)
        assert abs(found - (DEEP >> 8)).max() <= 1


def test_black_is_black(tmp_path):
    Image.fromarray(DEEP * 0).save(tmp_path / 'a.png')
    assert not load(tmp_path / 'a.png', in_channels=3).any()


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('used', [12, 16])
def test_colours_of_16_bits(used, channels, tmp_path):
    pixels = RNG.integers(0, 1 << used, (13, 17, channels), np.uint16)
    pixels[..., 3:] |= 0xff00  # opaque
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    path = tmp_path / 'a.png'
    path.write_bytes(png(zlib.compress(rows), depth=16, channels=channels))
    if used == 12:
        with pytest.raises(ValueError, match='nearly black: save it with 8'):
            load(path, in_channels=channels)
    with pytest.raises(ValueError, match='bits=12 .* is for grey images'):
        load(path, in_channels=channels, bits=12)
    np.testing.assert_array_equal(
        load(path, in_channels=channels, bits=16),
        pixels[..., [2, 1, 0, 3][:channels]] >> 8)


@pytest.mark.parametrize('mode, what', [('F', 'floats'),
                                        ('I', '32-bit integers')])
def test_numbers_without_a_range_are_refused(mode, what, tmp_path):
    path = tmp_path / 'a.tif'
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(ValueError, match=what) as info:
        load(path, in_channels=3)
    assert 'save it with 8 or 16 bits' in one_line(info)
    assert loading.unreadable([path]) == [str(path)]


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_upright_or_as_timm_has_them(suffix, orientation,
                                                tmp_path):
    path = tmp_path / f'a.{suffix}'
    exif = Image.Exif()
    exif[0x0112] = orientation
    COLOUR.save(path, exif=exif)
    with Image.open(path) as image:
        timms = np.array(image.convert('RGB'))
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image).convert('RGB'))
    np.testing.assert_array_equal(load(path, in_channels=3),
                                  upright[..., ::-1])
    np.testing.assert_array_equal(
        load(path, in_channels=3, upright=False), timms[..., ::-1])


def test_exif_that_is_broken_turns_nothing(tmp_path):
    path = tmp_path / 'a.png'
    text = b'Raw profile type exif\0\n\n\nno number'
    path.write_bytes(png(zlib.compress((b'\0' + bytes(51)) * 13),
                         chunk(b'tEXt', text)))
    assert load(path, in_channels=3).shape == (13, 17, 3)


@pytest.mark.parametrize('given, channels, expected', [
    ('grey', 1, 'grey'), ('grey1', 1, 'grey'), ('grey', 3, 'stacked'),
    ('grey1', 3, 'stacked'), ('bgr', 1, 'grey_of_rgb'), ('bgr', 3, 'bgr'),
    ('bgra', 1, 'grey_of_rgb'), ('bgra', 3, 'bgr'), ('bgra', 4, 'bgra'),
    ('deep', 1, 'deep'), ('five', 5, 'five')])
def test_what_is_loaded_gets_the_networks_channels(given, channels, expected):
    rgba = RNG.integers(0, 256, (13, 17, 4), np.uint8)
    grey = rgba[..., 0]
    images = dict(
        grey=grey, grey1=grey[..., None], stacked=np.stack([grey] * 3, 2),
        bgr=rgba[..., 2::-1], bgra=rgba[..., [2, 1, 0, 3]],
        grey_of_rgb=np.array(Image.fromarray(rgba[..., :3]).convert('L')),
        five=np.concatenate([rgba, rgba[..., :1]], 2))
    image = DEEP if given == 'deep' else images[given]
    done = LoadTimmImage(channels)(dict(img=image))
    np.testing.assert_array_equal(
        done['img'], DEEP >> 8 if given == 'deep' else images[expected])
    assert done['img_shape'] == (13, 17)


@pytest.mark.parametrize('image, channels, part', [
    (np.zeros((4, 4, 3), np.float32), 3, 'float32'),
    (np.zeros((4, 4, 3), np.uint8), 4, 'takes 4 channels'),
    (np.zeros((4, 4, 5), np.uint8), 3, 'takes 3 channels'),
    (np.zeros((2, 4, 4, 3), np.uint8), 3, '(2, 4, 4, 3)')])
def test_what_is_loaded_and_does_not_fit_is_refused(image, channels, part):
    with pytest.raises(ValueError, match='an image cannot be read') as info:
        LoadTimmImage(channels)(dict(img=image))
    assert part in one_line(info)


def test_four_channels_are_an_alpha_channel_or_bands(tmp_path):
    rgba = picture('RGBA')
    for suffix in ('png', 'tif'):
        rgba.save(tmp_path / f'a.{suffix}')
        np.testing.assert_array_equal(
            load(tmp_path / f'a.{suffix}', in_channels=4),
            np.array(rgba)[..., [2, 1, 0, 3]])
    bands = RNG.integers(0, 256, (13, 17, 4), np.uint8)
    for name, options in (('c', {}), ('s', dict(planarconfig='separate'))):
        tifffile.imwrite(
            tmp_path / f'{name}.tif', np.moveaxis(bands, 2, 0) if options
            else bands, photometric='minisblack', **options)
        np.testing.assert_array_equal(
            load(tmp_path / f'{name}.tif', in_channels=4), bands)
    COLOUR.save(tmp_path / 'a.jpg')
    with pytest.raises(ValueError, match=r'shape is \(13, 17, 3\), and the '
                       'network takes 4 channels'):
        load(tmp_path / 'a.jpg', in_channels=4)


# --- what cannot be read ---------------------------------------------------


def chunk(kind, data):
    return (len(data).to_bytes(4, 'big') + kind + data
            + zlib.crc32(kind + data).to_bytes(4, 'big'))


def png(data, *chunks, depth=8, channels=3):
    """A PNG of 17 x 13 colours with right check sums, whatever it holds."""
    head = (17).to_bytes(4, 'big') + (13).to_bytes(4, 'big')
    return (b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', head + bytes([depth, {3: 2, 4: 6}[channels],
                                           0, 0, 0]))
            + b''.join(chunks) + chunk(b'IDAT', data) + chunk(b'IEND', b''))


def broken(suffix):
    """Contents of a file that is broken."""
    if suffix == 'png':
        return png(b'\x78\x9c' + b'no pixels')
    file = io.BytesIO()
    COLOUR.resize((99, 99)).save(file, dict(jpg='JPEG', tif='TIFF')[suffix])
    return file.getvalue()[:900]


@pytest.mark.parametrize('content, part', [
    (broken('png'), 'broken data stream'), (broken('jpg'), 'truncated'),
    (broken('tif'), ''), (b'', 'no image that Pillow knows'),
    (b'<html>', 'no image that Pillow knows'), (None, 'No such file')])
def test_what_cannot_be_read_is_named_with_the_reason(content, part,
                                                      tmp_path):
    path = tmp_path / 'a.x'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as info:
        load(path, in_channels=3)
    line = one_line(info)
    assert line.startswith(f'{str(path)!r} cannot be read: ') and part in line
    assert line.endswith('remove or replace it') and 'BytesIO' not in line
    assert line.count(str(path)) == 1


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    COLOUR.save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50)
    with pytest.raises(ValueError, match=r'a\.png.*decompression bomb'):
        load(tmp_path / 'a.png', in_channels=3)


@pytest.mark.parametrize('size', [(3, 5), (7, 900)])
@pytest.mark.parametrize('kind', ['jpg', 'png', 'bmp'])
def test_only_what_is_no_image_is_found_by_its_first_bytes(tmp_path, size,
                                                           kind):
    path = tmp_path / f'a.{kind}'
    Image.new('RGB', size).save(path)
    (tmp_path / 'b.png').write_bytes(b'no image')
    assert loading.unreadable([path, tmp_path / 'b.png']) == [
        str(tmp_path / 'b.png')]


def test_training_names_the_image_that_is_broken(tmp_path):
    write_folder(tmp_path / 'd')
    path = tmp_path / 'd' / 'train' / 'white' / 'white_1.png'
    path.write_bytes(broken('png'))
    text = python(
        ROOT / 'tools' / 'train.py', 'image_folder/resnet50', '--work-dir',
        tmp_path / 'w', '--cfg-options', *folder_options(tmp_path / 'd'),
        'model.head.num_classes=2', ok=False)
    line = last_line(text)
    assert f'{str(path)!r} cannot be read: broken data stream' in line


def test_files_come_by_the_hosts_backends(tmp_path):
    COLOUR.save(tmp_path / 'a.png')
    server = HTTPServer(('127.0.0.1', 0), partial(
        SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f'http://127.0.0.1:{server.server_port}'
        np.testing.assert_array_equal(
            load(f'{address}/a.png', in_channels=3),
            np.array(COLOUR)[..., ::-1])
        with pytest.raises(ValueError, match='no.png.*404'):
            load(f'{address}/no.png', in_channels=3)
    finally:
        server.shutdown()
        server.server_close()


class Shelf(BaseStorageBackend):
    """A backend of someone's own."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def get(self, filepath):
        return (self.folder / filepath).read_bytes()

    def get_text(self, filepath):
        raise NotImplementedError


def test_a_backend_of_ones_own_gets_its_arguments(monkeypatch, tmp_path):
    monkeypatch.setitem(backends, 'shelf', Shelf)
    COLOUR.save(tmp_path / 'a.png')
    image = load('a.png', in_channels=3, backend_args=dict(
        backend='shelf', folder=str(tmp_path)))
    np.testing.assert_array_equal(image, np.array(COLOUR)[..., ::-1])


class Evil:

    def __reduce__(self):
        return pytest.fail, ('code of a file has run', )


def test_no_code_of_a_file_is_run(tmp_path):
    np.save(tmp_path / 'a.npy', np.array([Evil()]), allow_pickle=True)
    with pytest.raises(ValueError, match=r'a\.npy.*Object arrays cannot'):
        load(tmp_path / 'a.npy', in_channels=5)


# --- channels follow the network -------------------------------------------


@pytest.mark.parametrize('channels', [1, 3])
def test_channels_are_those_of_the_network_it_is_bound_to(channels, tmp_path):
    COLOUR.save(tmp_path / 'a.png')
    loader = LoadTimmImage()
    loader.bind_network(data_source('test_resnet', channels))
    for each in (loader, pickle.loads(pickle.dumps(loader))):  # noqa: S301
        image = each(dict(img_path=str(tmp_path / 'a.png')))['img']
        assert image.shape == ((13, 17) if channels == 1 else (13, 17, 3))
    fixed = LoadTimmImage(in_channels=3)  # what is given stays
    fixed.bind_network(data_source('test_resnet', 1))
    assert fixed(dict(img_path=str(tmp_path / 'a.png')))['img'].ndim == 3


def test_networks_of_other_channels_leave_open_which_are_meant():
    networks = [TimmFeatureBackbone('test_resnet', in_channels=channels)
                for channels in (1, 3)]
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match='LoadTimmImage has no in_channels'):
        LoadTimmImage()(dict(img=image))
    networks[0] = TimmFeatureBackbone('test_vit')  # other images, but colour
    assert LoadTimmImage()(dict(img=image))['img'].shape == (4, 4, 3)


class Images(torch.utils.data.Dataset):

    def __init__(self, loader, path):
        self.loader, self.path = loader, path

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.loader(dict(img_path=self.path))['img'].shape


@pytest.mark.full
def test_spawned_workers_load_for_the_network(tmp_path):
    COLOUR.save(tmp_path / 'a.png')
    loader = LoadTimmImage()
    loader.bind_network(data_source('test_resnet', 1))
    (shape, ) = DataLoader(
        Images(loader, str(tmp_path / 'a.png')), batch_size=None,
        num_workers=1, multiprocessing_context='spawn')
    assert tuple(shape) == (13, 17)


def classifier(channels, load):
    return Config(dict(
        custom_imports=dict(imports=['gap_plugin']),
        model=dict(
            type='TimmFeatureClassifier', backbone=dict(
                type='TimmFeatureBackbone', model_name='test_resnet',
                img_size=64, in_channels=channels),
            neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
            head=dict(type='LinearHead', num_classes=3)),
        test_dataloader=dict(dataset=dict(type='CustomDataset', pipeline=[
            load, dict(type='TimmTestTransform'),
            dict(type='PackInputs')]))))


@pytest.mark.parametrize('channels', [1, full(3), 4])
def test_an_inferencer_takes_images_of_any_channels(channels, tmp_path):
    """A colour image on a grey network, and so on."""
    model = get_model(classifier(channels, dict(type='LoadTimmImage')))
    inferencer = ImageClassificationInferencer(model)
    steps = [LoadTimmImage(channels), *inferencer.pipeline.transforms[1:]]
    files = ['RGBA'] if channels == 4 else ['RGB', 'L']
    for mode in files:
        path = tmp_path / f'{mode}.png'
        picture(mode).save(path)
        sample = dict(img_path=str(path))
        for step in steps:
            sample = step(sample)
        with torch.no_grad():
            inputs = model.data_preprocessor(dict(
                inputs=sample['inputs'][None]))['inputs']
            expected = model(inputs).softmax(1)[0].numpy()
        given = [np.array(picture(mode))]
        if mode != 'L':  # as people give them: BGR
            given[0] = given[0][..., [2, 1, 0, 3][:given[0].shape[2]]]
        for image in given + ([str(path)] if channels != 4 else []):
            (result, ) = inferencer(image)
            np.testing.assert_allclose(result['pred_scores'], expected,
                                       rtol=1e-4, atol=1e-5)
