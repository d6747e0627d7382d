"""Class activation maps: exact at every position, or refused."""

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.model.utils import convert_sync_batchnorm
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import nn

from errors import one_line
from gap_plugin import (
    BNNeck,
    GAPNeck,
    LinearHead,
    TimmFeatureClassifier,
    class_activation_map,
)
from gap_plugin.visualization import fold
from networks import SMALLEST, images, spoilt, sweep

EXACT = 1e-5  # of the largest |logit|


def classifier(network='test_resnet', neck=None, head=None, kind=None,
               **backbone):
    """A classifier of 7 classes whose every norm differs, in eval mode."""
    torch.manual_seed(0)
    model = (kind or TimmFeatureClassifier)(
        dict(type='TimmFeatureBackbone', model_name=network, **backbone),
        neck or [dict(type='GAPNeck'), dict(type='BNNeck')],
        {'type': 'LinearHead', 'num_classes': 7, **(head or {})})
    spoilt(model)
    if isinstance(getattr(model.head, 'fc', None), nn.Linear):
        nn.init.normal_(model.head.fc.weight, std=.1)
    return model.eval()


def of_part(model, features, chosen):
    """What neck and head give of some positions of a map."""
    part = features[-1].flatten(2)[:, :, chosen].mean(2)[..., None, None]
    return model.head(model.neck((part, )))


def worst(model, x):
    """Largest error of a map, over all its positions and over parts of them.

    In shares of the largest logit. The mean over all is the logit; but so it
    is of a hidden layer that is linearised at an image, and parts tell.
    """
    maps = class_activation_map(model, x)
    with torch.no_grad():
        features = model.backbone(x)
        logits = model(x)
        largest = logits.abs().max()
        errors = [(maps.mean((2, 3)) - logits).abs().max()]
        count = maps[0, 0].numel()
        for size in {1, max(count // 3, 1), max(count - 1, 1)}:
            chosen = torch.randperm(count)[:size]
            errors.append((maps.flatten(2)[:, :, chosen].mean(2)
                           - of_part(model, features, chosen)).abs().max())
    assert largest > 1e-3 and maps.isfinite().all()
    # or all of this would be true of a map that is the same everywhere
    assert (maps.flatten(2).std(2) > 100 * EXACT * largest).any()
    return max(errors) / largest


@pytest.mark.parametrize('name', sweep(SMALLEST.values()))
def test_a_map_is_the_logit_position_by_position(name):
    x = images(name, 1)
    if name == 'levit_128s':  # what differs fades from layer to layer
        x = 1000 * x
    assert worst(classifier(name), x) < EXACT


def lite_chain(*necks, **head):
    return dict(neck=list(necks), head=head)


GAP = dict(type='GlobalAveragePooling')
CHAINS = {
    'gap': lite_chain(dict(type='GAPNeck')),
    'norm of the map': lite_chain(dict(type='BNNeck'), dict(type='GAPNeck')),
    'two norms': lite_chain(dict(type='BNNeck'), dict(type='GAPNeck'),
                            dict(type='BNNeck', affine=False)),
    'no bias': lite_chain(GAP, type='LinearHead', bias=False, dropout=.5),
    'stock': lite_chain(GAP, type='LinearClsHead'),
    'stock norm': lite_chain(
        GAP, dict(type='ClsBatchNormNeck'), type='LinearClsHead'),
    'affine norm': lite_chain(
        GAP, dict(type='ClsBatchNormNeck', affine=True), type='LinearClsHead'),
    'linear': lite_chain(
        GAP, dict(type='LinearNeck', out_channels=5), type='LinearClsHead'),
    'linear that pools': lite_chain(
        dict(type='LinearNeck', out_channels=5, gap_dim=2, norm_cfg=None)),
    'linear, and a norm': lite_chain(
        dict(type='LinearNeck', out_channels=5, gap_dim=2),
        dict(type='BNNeck')),
    'several labels': lite_chain(GAP, type='MultiLabelLinearClsHead'),
}


@pytest.mark.parametrize('chain', CHAINS)
def test_every_chain_of_affine_parts_has_its_map(chain):
    x = images('test_resnet')
    assert worst(classifier(**CHAINS[chain]), x) < EXACT


def test_levels_give_the_map_that_the_head_sees():
    model = classifier(out_indices=(2, 3))
    x = images('test_resnet')
    maps = class_activation_map(model, x)
    assert maps.shape[2:] == model.backbone(x)[-1].shape[2:]
    torch.testing.assert_close(maps.mean((2, 3)), model(x))


@pytest.mark.parametrize('change', [
    lambda m: convert_sync_batchnorm(m, 'torch'),
    lambda m: revert_sync_batchnorm(convert_sync_batchnorm(m, 'torch')),
    lambda m: setattr(m.head, 'fc', nn.utils.parametrizations.weight_norm(
        m.head.fc))])
def test_layers_of_the_same_forward_are_known(change):
    model = classifier()
    model.neck = nn.Sequential(nn.Identity(), *model.neck, nn.Dropout())
    x = images('test_resnet')
    before = class_activation_map(model.eval(), x)
    model = change(model) or model
    model.backbone.timm_model = revert_sync_batchnorm(
        model.backbone.timm_model)
    torch.testing.assert_close(class_activation_map(model.eval(), x), before,
                               rtol=1e-4, atol=1e-4)


def test_classes_are_rows_of_the_map():
    model, x = classifier(), images('test_resnet')
    whole = class_activation_map(model, x)
    some = class_activation_map(model, x, [5, 0])
    torch.testing.assert_close(some, whole[:, [5, 0]])
    each = torch.tensor([[1, 2], [6, 3]])
    torch.testing.assert_close(
        class_activation_map(model, x, each),
        torch.stack([whole[0, [1, 2]], whole[1, [6, 3]]]))


@pytest.mark.parametrize('classes', [
    [7], [-1], [], [0.], [True], [[0], [1], [2]]])
def test_classes_that_are_not_there_are_refused(classes):
    with pytest.raises(ValueError, match='classes=') as info:
        class_activation_map(classifier(), images('test_resnet'), classes)
    one_line(info)


def test_a_fold_is_in_float64_and_is_not_moved_by_the_model():
    model, x = classifier(), images('test_resnet')
    folded = fold(model)
    assert folded.weight.dtype == folded.bias.dtype == torch.float64
    features = model.double().backbone(x.double())[-1]
    vectors = features.mean((2, 3))
    expected = vectors @ folded.weight.T + folded.bias
    with torch.no_grad():
        torch.testing.assert_close(model(x.double()), expected,
                                   rtol=1e-12, atol=1e-12)
    maps = folded.maps(features)
    assert maps.dtype == torch.float64 and not maps.requires_grad
    nn.init.zeros_(model.head.fc.weight)
    torch.testing.assert_close(folded.maps(features), maps)


def test_maps_of_half_precision_are_added_in_float32():
    model, x = classifier(), images('test_resnet')
    folded = fold(model)
    features = model.backbone(x)[-1].bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        maps = folded.maps(features)
    torch.testing.assert_close(maps, folded.maps(features.float()))
    assert maps.dtype == torch.float32


class Squared(LinearClsHead):
    """A linear head by its class, and none by what it does."""

    def pre_logits(self, feats):
        return super().pre_logits(feats) ** 2


class Hidden(nn.Module):
    """A part of its own."""

    def forward(self, feats):
        return feats


class Other(TimmFeatureClassifier):
    """A classifier that does more."""

    def extract_feat(self, inputs, stage='neck'):
        return super().extract_feat(2 * inputs, stage)


def unknown_part():
    model = classifier()
    model.neck.append(Hidden())
    return model.eval()


def with_head(head, **kwargs):
    model = classifier()
    model.head = head(num_classes=7, in_channels=model.head.in_channels,
                      **kwargs)
    return model.eval()


def without_statistics():
    model = classifier()
    bn = model.neck[1].bn
    model.neck[1].bn = nn.BatchNorm1d(bn.num_features,
                                      track_running_stats=False)
    return model.eval()


def partly_training():
    model = classifier()
    model.neck[1].train()
    return model


REFUSED = {
    'training mode': (lambda: classifier().train(), 'model.eval()'),
    'a part in it': (partly_training, 'neck.1 is in training mode'),
    'hidden layer': (lambda: classifier(head=dict(
        type='StackedLinearClsHead', mid_channels=[4])),
        'head is StackedLinearClsHead'),
    'subclass': (lambda: with_head(Squared), 'head is Squared'),
    'activation': (lambda: classifier(neck=[
        GAP, dict(type='LinearNeck', out_channels=5,
                  act_cfg=dict(type='ReLU'))]), 'neck.1.act is ReLU'),
    'unknown part': (unknown_part, 'neck.2 is Hidden'),
    'statistics of the batch': (without_statistics, 'track_running_stats'),
    'pre_logits': (lambda: classifier(out_feature='pre_logits'),
                   "out_feature='pre_logits'"),
    'no pooling': (lambda: classifier(
        neck=[dict(type='BNNeck')]), 'no global average pooling'),
    'other classifier': (lambda: classifier(kind=Other), 'Other is no'),
    'no classifier': (lambda: nn.Linear(2, 2), 'Linear is no'),
    'cosine': (lambda: classifier(head=dict(type='ArcFaceClsHead')),
               'up_to_factor=True'),
    'generalised mean': (lambda: classifier(neck=[
        dict(type='GeneralizedMeanPooling')]), 'up_to_factor=True'),
    'several centres': (lambda: classifier(head=dict(
        type='ArcFaceClsHead', num_subcenters=2)),
        'head.norm_product is NormProduct'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_not_affine_is_refused_by_its_name(case):
    build, said = REFUSED[case]
    model = build()
    with pytest.raises(ValueError) as info:
        fold(model)
    assert said in one_line(info)


def test_a_linearised_hidden_layer_would_be_found_out():
    """The mean of its map is the logit, and parts of the map tell."""
    model, x = classifier(), images('test_resnet', 1)
    model.head = Squared(7, model.head.in_channels).eval()
    with torch.no_grad():
        features = model.backbone(x)[-1]
        mean = model.neck((features, ))[-1]
        normed = model.neck[1].bn(features.flatten(2))
        maps = model.head.fc.weight @ (
            mean[..., None] * normed) + model.head.fc.bias[:, None]
        torch.testing.assert_close(maps.mean(2), model(x), rtol=1e-4,
                                   atol=1e-5)
        chosen = torch.arange(5)
        error = maps[:, :, chosen].mean(2) - of_part(
            model, (features, ), chosen)
    assert error.abs().max() > .01 * model(x).abs().max()


@pytest.mark.parametrize('neck, head, said', [
    (None, dict(type='ArcFaceClsHead'), 'an image (NormProduct)'),
    ([dict(type='GeneralizedMeanPooling'), dict(type='BNNeck')], None,
     'an image and channel (GeneralizedMeanPooling)'),
    ([dict(type='GeneralizedMeanPooling', clamp=False, p=1.),
      dict(type='LinearNeck', out_channels=5)],
     dict(type='ArcFaceClsHead'), 'channel (GeneralizedMeanPooling) and an')])
def test_on_request_a_map_is_exact_up_to_a_factor(neck, head, said):
    model, x = classifier(neck=neck, head=head), images('test_resnet')
    maps = class_activation_map(model, x, up_to_factor=True)
    with torch.no_grad():
        logits = model(x)
    error = (maps.mean((2, 3)) - logits).abs().max() / logits.abs().max()
    assert error < EXACT
    assert said in fold(model, up_to_factor=True).note


def test_up_to_factor_a_cosine_is_that_of_each_part():
    """The sign and order of classes are those of any part of the map."""
    model, x = classifier(head=dict(type='ArcFaceClsHead')), images(
        'test_resnet', 1)
    maps = class_activation_map(model, x, up_to_factor=True)
    with torch.no_grad():
        features, chosen = model.backbone(x), torch.arange(3)
        theirs = of_part(model, features, chosen)
    ours = maps.flatten(2)[:, :, chosen].mean(2)
    factor = ours / theirs
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor),
                               rtol=1e-3, atol=0)
    assert (factor > 0).all()


def test_a_feature_that_is_no_map_is_refused():
    folded = fold(classifier())
    for shape in ((2, folded.weight.shape[1]), (2, 3, 4, 4)):
        with pytest.raises(ValueError, match='feature map') as info:
            folded.maps(torch.zeros(shape))
        one_line(info)


def test_the_parts_are_those_of_the_registry():
    """Which may be others of the same name, in the fork."""
    for name in ('GAPNeck', 'BNNeck', 'LinearHead'):
        assert MODELS.get(name) in (GAPNeck, BNNeck, LinearHead)
