"""Images come to the network as timm would give them, pixel by pixel."""


import numpy as np
import pytest
import timm
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image
from skimage import data as photos
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from errors import one_line
from gap_plugin import (
    TimmFeatureBackbone,
    TimmTestTransform,
    TimmTrainTransform,
    timm_test_pipeline,
    timm_train_pipeline,
)
from gap_plugin.timm_network import data_source
from networks import full

#: Together they have every interpolation, crop mode, and mean and std of
#: timm's table.
NETWORKS = ('resnet50', 'eca_nfnet_l1', 'tf_efficientnet_lite0', 'dla34',
            'convnext_tiny', 'vit_small_patch16_224', 'inception_v3',
            'swin_tiny_patch4_window7_224', 'vit_base_patch16_clip_224',
            'convnext_base.fb_in22k_ft_in1k_384', 'vit_base_patch16_sapiens2',
            'deepseek_vit_412m', 'dpn68', 'mobilevit_s',
            'coat_lite_medium_384', 'densenet121', 'pvt_v2_b0',
            'vit_large_patch16_dinov3.sat493m', 'sequencer2d_s',
            'volo_d4_448')  # whose crop_pct is over 1

PHOTOS = {
    'chelsea': photos.chelsea(),  # landscape, 300 x 451
    'coffee': photos.coffee(),
    'astronaut': photos.astronaut()[:, 100:333],  # portrait, odd
    'camera': photos.camera()[:311],  # grey
    'logo': photos.logo(),  # RGBA
    'small': photos.chelsea()[100:161, 50:133],  # enlarged
    'china': load_sample_images().images[0],
    'flower': load_sample_images().images[1][:-6, :-1],
}


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')


def test_networks_cover_all_that_timm_knows():
    def kinds(names):
        found = [get_pretrained_cfg(name) for name in names]
        return tuple({getattr(cfg, key) for cfg in found}
                     for key in ('interpolation', 'crop_mode', 'mean', 'std'))

    every = timm.list_models() + timm.list_models(pretrained=True)
    assert kinds(NETWORKS) == kinds(every)
    assert {cfg.test_input_size is None
            for cfg in map(get_pretrained_cfg, NETWORKS)} == {True, False}


def network_input(pipeline, name, path, in_channels=3):
    """What pipeline and preprocessor give a network."""
    settings = data_source(name, in_channels).settings(False)
    preprocessor = ClsDataPreprocessor(**settings.normalisation)
    packed = Compose(pipeline)(dict(img_path=str(path)))
    return preprocessor(dict(inputs=[packed['inputs']], data_samples=[
        packed['data_samples']]))['inputs'][0]


def timms_input(name, path, mode='RGB'):
    cfg = get_pretrained_cfg(name).to_dict()
    settings = resolve_data_config(pretrained_cfg=cfg, use_test_size=True)
    image = Image.open(path).convert(mode)
    return create_transform(**settings)(image)


@pytest.mark.parametrize('suffix, name', [
    ('png', name) if name in NETWORKS[:8] else full('png', name)
    for name in NETWORKS] + [('jpg', NETWORKS[0])] + [
        full('jpg', name) for name in NETWORKS[1:]])
def test_pixels_are_those_of_timm(name, suffix, tmp_path):
    cfg = get_pretrained_cfg(name)
    # a difference of 1/255 before normalisation
    allowed = 1 / 255 / torch.tensor(cfg.std).view(-1, 1, 1)
    for photo, pixels in PHOTOS.items():
        path = tmp_path / f'{photo}.{suffix}'
        image = Image.fromarray(pixels)
        if suffix == 'jpg':
            image = image.convert('RGB' if pixels.ndim > 2 else 'L')
        image.save(path)
        theirs = timms_input(name, path)
        ours = network_input(timm_test_pipeline(name), name, path)
        assert ours.shape == theirs.shape
        assert ((ours - theirs).abs() <= allowed).all(), photo


@pytest.mark.parametrize('photo', [
    photo if photo in ('chelsea', 'logo') else full(photo)
    for photo in PHOTOS])
def test_logits_of_real_weights_are_those_of_timm(photo, tmp_path,
                                                  lite0_weights):
    path = tmp_path / 'photo.png'
    Image.fromarray(PHOTOS[photo]).save(path)
    name = 'tf_efficientnet_lite0'
    model = timm.create_model(name, checkpoint_path=str(lite0_weights)).eval()
    backbone = TimmFeatureBackbone(
        name, checkpoint_path=str(lite0_weights)).eval()
    x = network_input(timm_test_pipeline(name), name, path)
    with torch.no_grad():
        theirs = model(timms_input(name, path)[None])
        ours = model.classifier(backbone(x[None])[0].mean((2, 3)))
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


def test_grey_images_are_those_of_timm(tmp_path):
    path = tmp_path / 'camera.png'
    Image.fromarray(PHOTOS['camera']).save(path)
    pipeline = timm_test_pipeline('dla34', in_channels=1)
    packed = Compose(pipeline)(dict(img_path=str(path)))
    cfg = resolve_data_config(pretrained_cfg=get_pretrained_cfg(
        'dla34').to_dict(), use_test_size=True)
    theirs = create_transform(**dict(cfg, normalize=False))(
        Image.open(path).convert('L'))
    assert packed['inputs'].shape == theirs.shape
    difference = packed['inputs'].int() - theirs.int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_any_number_of_channels_passes(channels, tmp_path):
    image = np.random.default_rng(0).integers(
        0, 256, (60, 80, channels), np.uint8)
    for transform in (TimmTestTransform, TimmTrainTransform):
        steps = transform('test_resnet', in_channels=channels)
        out = steps(dict(img=image.copy(), img_shape=image.shape[:2]))
        assert out['img'].shape[:2] == (160, 160)
        assert channels == 1 or out['img'].shape[2] == channels


def test_pipelines_are_plain_dicts_that_a_config_holds(tmp_path):
    for pipeline in (timm_test_pipeline('resnet50'),
                     timm_train_pipeline('resnet50', random_erasing=0.25)):
        cfg = Config(dict(pipeline=pipeline))
        cfg.dump(str(tmp_path / 'dumped.py'))
        again = Config.fromfile(str(tmp_path / 'dumped.py')).pipeline
        assert again == cfg.pipeline
        assert all(type(step) is dict for step in pipeline)
        path = tmp_path / 'photo.png'
        Image.fromarray(PHOTOS['chelsea']).save(path)
        packed = Compose(again)(dict(img_path=str(path)))
        side = 288 if pipeline[-2]['type'] == 'CenterCrop' else 224
        assert packed['inputs'].shape == (3, side, side)


def test_training_pipeline_follows_its_options():
    def types(**kwargs):
        return [s['type'] for s in timm_train_pipeline('resnet50', **kwargs)]

    assert types() == ['LoadTimmImage', 'RandomResizedCrop', 'RandomFlip',
                       'ColorJitter', 'PackInputs']
    assert types(hflip=0, color_jitter=0, random_erasing=0.1) == [
        'LoadTimmImage', 'RandomResizedCrop', 'RandomErasing',
        'PackInputs']
    augment = dict(type='RandAugment', policies='timm_increasing',
                   num_policies=2, magnitude_level=9)
    assert 'ColorJitter' not in types(auto_augment=augment)
    crop = timm_train_pipeline('resnet50', scale=(0.5, 1), img_size=96)[1]
    assert crop['crop_ratio_range'] == (0.5, 1)
    assert crop['scale'] == (96, 96)
    assert (crop['backend'], crop['interpolation']) == ('pillow', 'bicubic')


# --- the same as transforms ------------------------------------------------


@pytest.mark.parametrize('options, part', [
    (dict(model_name='resnet5'), 'resnet50'),
    (dict(model_name='resnet50', img_size=0), 'img_size'),
    (dict(model_name='resnet50', img_size=(1, 2, 3)), 'img_size'),
    (dict(model_name='resnet50', crop_pct=0), 'crop_pct'),
    (dict(model_name='resnet50', crop_mode='middle'), 'squash'),
    (dict(model_name='resnet50', interpolation='cubic'), 'bicubic'),
    (dict(model_name='resnet50', img_size=(96, 64)), 'square'),
])
def test_bad_options_end_in_one_line(options, part):
    with pytest.raises(ValueError) as info:
        timm_test_pipeline(**options)
    assert part in one_line(info)
    with pytest.raises(ValueError) as info:
        TimmTestTransform(**options)
    assert part in one_line(info)


def test_unknown_option_of_a_transform_is_named():
    with pytest.raises(ValueError, match='crop_size') as info:
        TimmTestTransform('resnet50', crop_size=3)
    assert 'crop_pct' in one_line(info)


def test_height_and_width_are_not_mixed_up():
    backbone = TimmFeatureBackbone('test_resnet', img_size=(64, 96))
    assert backbone.image_size == (64, 96)
    for transform in (TimmTrainTransform(),
                      TimmTestTransform(crop_mode='squash'),
                      TimmTestTransform(crop_mode='border')):
        transform.bind_network(backbone.data_source)
        image = transform(dict(img=PHOTOS['chelsea']))['img']
        assert image.shape == (64, 96, 3)
    tall = TimmTrainTransform('vit_base_patch16_sapiens2')
    assert tall(dict(img=PHOTOS['chelsea']))['img'].shape[:2] == (1024, 768)
