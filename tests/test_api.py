"""MMPretrain's Python interface, on our model."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain import FeatureExtractor, get_model, inference_model
from mmpretrain.apis import (
    ImageClassificationInferencer,
    ImageRetrievalInferencer,
)
from PIL import Image

from gap_plugin import timm_test_pipeline


def config(**changes):
    cfg = Config(
        dict(
            custom_imports=dict(imports=['gap_plugin']),
            model=dict(
                type='TimmFeatureClassifier',
                backbone=dict(type='TimmFeatureBackbone',
                              model_name='test_resnet', img_size=64),
                neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
                head=dict(type='LinearHead', num_classes=3)),
            test_dataloader=dict(
                dataset=dict(type='CustomDataset', pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='TimmTestTransform'),
                    dict(type='PackInputs')]))))
    cfg.merge_from_dict(changes)
    return cfg


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'gallery').mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(
            tmp_path / 'gallery' / f'{i}.png')
    return tmp_path


@pytest.fixture
def trained(folder):
    """A config file, and a checkpoint of it as MMEngine writes one."""
    cfg = config()
    cfg.dump(folder / 'config.py')
    torch.manual_seed(3)
    model = get_model(cfg)
    torch.save(
        dict(state_dict=model.state_dict(),
             meta=dict(dataset_meta=dict(classes=['a', 'b', 'c']))),
        folder / 'epoch_1.pth')
    return folder


def images(folder):
    return sorted(str(p) for p in (folder / 'gallery').glob('*.png'))


def by_hand(model, paths):
    """Scores, with no inferencer in between."""
    init_default_scope('mmpretrain')
    from mmengine.dataset import Compose
    steps = Compose(timm_test_pipeline('test_resnet', img_size=64))
    rows = [steps(dict(img_path=path))['inputs'] for path in paths]
    model.eval()
    with torch.no_grad():
        done = model.data_preprocessor(dict(inputs=torch.stack(rows)))
        return model(done['inputs']).softmax(1)


def test_get_model_takes_a_file_and_a_checkpoint(trained):
    model = get_model(str(trained / 'config.py'),
                      pretrained=str(trained / 'epoch_1.pth'))
    saved = torch.load(trained / 'epoch_1.pth')['state_dict']
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name])
    assert model._dataset_meta == dict(classes=['a', 'b', 'c'])
    assert not model.training


def test_get_model_changes_the_network_by_an_argument():
    model = get_model(config(), backbone=dict(model_name='test_vit'))
    assert model.backbone.model_name == 'test_vit'
    assert model.head.fc.in_features == model.backbone.out_channels[0]


@pytest.mark.parametrize('source', ['model', 'file'])
def test_images_are_classified_by_the_inferencer(trained, source):
    path, weights = (str(trained / n) for n in ('config.py', 'epoch_1.pth'))
    if source == 'model':
        inferencer = ImageClassificationInferencer(
            get_model(path, pretrained=weights))
    else:
        inferencer = ImageClassificationInferencer(path, pretrained=weights)
    paths = images(trained)
    results = inferencer(paths, batch_size=2)
    scores = torch.tensor(np.stack([r['pred_scores'] for r in results]))
    torch.testing.assert_close(scores, by_hand(inferencer.model, paths))
    assert [r['pred_class'] for r in results] == [
        'abc'[i] for i in scores.argmax(1)]


def test_inference_model_takes_a_model_of_ones_own(trained):
    model = get_model(str(trained / 'config.py'),
                      pretrained=str(trained / 'epoch_1.pth'))
    (path, *_) = images(trained)
    result = inference_model(model, path)
    scores = torch.tensor(result['pred_scores'])[None]
    torch.testing.assert_close(scores, by_hand(model, [path]))


def test_an_entry_of_the_zoo_is_kept():
    model = get_model(config())
    entry = object()
    model._metainfo = entry
    assert model._metainfo is entry


@pytest.mark.parametrize('stage', ['backbone', 'neck', 'pre_logits'])
def test_features_are_extracted(trained, stage):
    model = get_model(str(trained / 'config.py'))
    features = FeatureExtractor(model)(images(trained), stage=stage)
    assert len(features) == 4
    width = model.backbone.out_channels[0]
    for feature in features:
        value = feature[-1] if isinstance(feature, tuple) else feature
        shape = (width, 2, 2) if stage == 'backbone' else (width, )
        assert value.shape == shape


def test_an_image_finds_itself_in_a_gallery(trained):
    model = dict(
        type='ImageToImageRetriever', _delete_=True,
        image_encoder=[config().model.backbone, dict(type='GAPNeck')],
        prototype=str(trained / 'cache.pth'))
    inferencer = ImageRetrievalInferencer(
        config(model=model),
        prototype=str(trained / 'gallery'),
        prototype_cache=str(trained / 'cache.pth'))
    for i, path in enumerate(images(trained)):
        (result, ) = inferencer(path)
        assert result[0]['sample_idx'] == i


def test_a_merged_network_is_built_from_a_config(folder):
    """As reparameterize_model.py writes it."""
    cfg = config(**{'model.backbone.model_name': 'repvgg_a0'})
    model = get_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, .5, 2.)
    before = by_hand(model, images(folder))
    model.backbone.switch_to_deploy()
    merged = get_model(cfg, backbone=dict(deploy=True))
    merged.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(by_hand(merged, images(folder)), before,
                               rtol=1e-3, atol=1e-4)
