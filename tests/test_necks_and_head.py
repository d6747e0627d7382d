"""``GAPNeck``, ``BNNeck`` and ``LinearHead``, against references."""

import copy

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.model.utils import convert_sync_batchnorm
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch._subclasses import FakeTensorMode

from gap_plugin import BNNeck, GAPNeck, LinearHead, TimmFeatureBackbone


def features(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- GAPNeck ---------------------------------------------------------------


def by_hand(x):
    n, c, h, w = x.shape
    out = torch.empty(n, c, dtype=torch.float64)
    for i in range(n):
        for j in range(c):
            out[i, j] = sum(x[i, j].double().flatten().tolist()) / (h * w)
    return out.float()


def test_gap_is_the_mean_over_positions():
    x = features(2, 5, 3, 4)
    torch.testing.assert_close(GAPNeck()(x), by_hand(x))


def test_gap_gives_a_tuple_for_a_tuple_so_that_stock_heads_fit():
    maps = features(2, 5, 4, 4), features(2, 7, 2, 2)
    pooled = GAPNeck()(maps)
    assert isinstance(pooled, tuple)
    for ours, x in zip(pooled, maps, strict=True):
        torch.testing.assert_close(ours, by_hand(x))


def test_gap_passes_vectors_through():
    x = features(2, 5)
    assert GAPNeck()(x) is x


def test_gap_refuses_tokens():
    with pytest.raises(ValueError, match='TimmFeatureBackbone gives maps'):
        GAPNeck()(features(2, 49, 192))


# --- BNNeck ----------------------------------------------------------------


def normalised(x, weight, bias, eps):
    axes = [a for a in range(x.ndim) if a != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean = x.mean(axes)
    var = ((x - mean.view(shape))**2).mean(axes)
    x = (x - mean.view(shape)) / (var.view(shape) + eps).sqrt()
    return x * weight.view(shape) + bias.view(shape), mean, var


@pytest.mark.parametrize('shape', [(6, 4), (3, 4, 2, 5)])
def test_bn_normalises_by_the_formula_and_tracks_statistics(shape):
    neck = BNNeck(4, eps=0.01, momentum=0.3)
    nn.init.normal_(neck.bn.weight)
    nn.init.normal_(neck.bn.bias)
    x = features(*shape)
    expected, mean, var = normalised(x, neck.bn.weight, neck.bn.bias, 0.01)
    torch.testing.assert_close(neck(x), expected)
    count = x.numel() / 4
    torch.testing.assert_close(neck.bn.running_mean, 0.3 * mean)
    torch.testing.assert_close(neck.bn.running_var,
                               0.7 + 0.3 * var * count / (count - 1))
    neck.eval()
    shape = [1, -1] + [1] * (x.ndim - 2)
    scale = neck.bn.weight / (neck.bn.running_var + 0.01).sqrt()
    torch.testing.assert_close(
        neck(x), (x - neck.bn.running_mean.view(shape)) * scale.view(shape) +
        neck.bn.bias.view(shape))


def test_bn_of_a_tuple_is_a_tuple_of_the_last():
    neck, x = BNNeck(4), features(6, 4)
    (ours, ) = neck((features(6, 9), x))
    torch.testing.assert_close(ours, BNNeck(4)(x))


def test_bn_with_frozen_bias_learns_its_scale_alone():
    neck = BNNeck(4, freeze_bias=True)
    optimizer = torch.optim.SGD(neck.parameters(), lr=0.1, weight_decay=0.1)
    (neck(features(6, 4)) * features(6, 4)).sum().backward()
    optimizer.step()
    assert (neck.bn.bias == 0).all() and not (neck.bn.weight == 1).all()


def test_bn_without_affine_has_no_parameters():
    assert not list(BNNeck(4, affine=False).parameters())


def test_bn_is_converted_by_mmengines_sync_bn_and_back():
    neck = BNNeck(4, eps=0.01, freeze_bias=True)
    nn.init.normal_(neck.bn.weight)
    neck(features(6, 4))
    neck.eval()
    expected = neck(features(6, 4))
    synced = convert_sync_batchnorm(neck, 'torch')
    assert isinstance(synced.bn, nn.SyncBatchNorm)
    assert not synced.bn.bias.requires_grad
    back = revert_sync_batchnorm(synced).eval()
    torch.testing.assert_close(back(features(6, 4)), expected)


def test_bn_names_a_batch_of_one():
    neck = BNNeck(4)
    with pytest.raises(ValueError, match='drop_last=True'):
        neck(features(1, 4))
    assert neck.bn.num_batches_tracked == 0
    neck(features(1, 4, 2, 2))  # four positions have a variance
    neck.eval()
    neck(features(1, 4))


@pytest.mark.parametrize('kwargs, part', [
    (dict(in_channels=0), 'positive'),
    (dict(in_channels=4, affine=False, freeze_bias=True), 'no bias'),
])
def test_bn_names_wrong_arguments(kwargs, part):
    with pytest.raises(ValueError, match=part):
        BNNeck(**kwargs)


# --- LinearHead ------------------------------------------------------------


def labelled(*labels):
    return [DataSample().set_gt_label(label) for label in labels]


@pytest.mark.parametrize('bias', [True, False])
def test_head_is_a_matrix_product(bias):
    head, x = LinearHead(3, 5, bias=bias), features(4, 5)
    expected = torch.einsum('nc,kc->nk', x, head.fc.weight)
    if bias:
        nn.init.normal_(head.fc.bias)
        expected = expected + head.fc.bias
    else:
        assert head.fc.bias is None
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head((features(4, 9), x)), expected)


def test_head_gives_cross_entropy_and_accuracy():
    head, x = LinearHead(3, 5, cal_acc=True, topk=(1, 2)), features(4, 5)
    losses = head.loss(x, labelled(0, 1, 2, 1))
    logits = head(x).double()
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    target = torch.tensor([0, 1, 2, 1])
    expected = -p[torch.arange(4), target].log().mean()
    torch.testing.assert_close(losses['loss'].double(), expected)
    order = logits.argsort(1, descending=True)
    for k in (1, 2):
        hits = (order[:, :k] == target[:, None]).any(1).double().mean()
        accuracy = torch.as_tensor(losses[f'accuracy_top-{k}']).double()
        torch.testing.assert_close(accuracy.squeeze() / 100, hits)


def test_head_predicts_the_softmax_and_its_maximum():
    head, x = LinearHead(3, 5), features(4, 5)
    for sample, logits in zip(head.predict(x), head(x), strict=True):
        p = logits.exp() / logits.exp().sum()
        torch.testing.assert_close(sample.pred_score, p)
        assert sample.pred_label == p.argmax()


def test_head_takes_every_stock_loss():
    head = LinearHead(3, 5, loss=dict(type='LabelSmoothLoss',
                                      label_smooth_val=0.1))
    loss = head.loss(features(4, 5), labelled(0, 1, 2, 1))['loss']
    log_p = head(features(4, 5)).log_softmax(1)
    target = torch.full((4, 3), 0.1 / 3)
    target[torch.arange(4), torch.tensor([0, 1, 2, 1])] += 0.9
    torch.testing.assert_close(loss, -(target * log_p).sum(1).mean())


def test_head_takes_soft_labels_of_batch_augmentations():
    head = LinearHead(3, 5)
    scores = torch.eye(3)
    samples = [DataSample().set_gt_score(s) for s in scores]
    soft = head.loss(features(3, 5), samples)['loss']
    hard = head.loss(features(3, 5), labelled(0, 1, 2))['loss']
    torch.testing.assert_close(soft, hard)


def test_head_drops_features_in_training_alone():
    head, x = LinearHead(3, 5, dropout=1.0), features(4, 5)
    nn.init.ones_(head.fc.bias)
    assert torch.equal(head.train()(x), torch.ones(4, 3))
    assert not torch.equal(head.eval()(x), torch.ones(4, 3))


@pytest.mark.parametrize('kwargs, part', [
    (dict(num_classes=0, in_channels=5), 'num_classes .* got 0'),
    (dict(num_classes=3, in_channels=-1), 'in_channels .* got -1'),
    (dict(num_classes=3, in_channels=5, dropout=2), 'from 0 to 1, got 2'),
])
def test_head_names_wrong_arguments(kwargs, part):
    with pytest.raises(ValueError, match=part):
        LinearHead(**kwargs)


@pytest.mark.parametrize('samples, part', [
    (labelled(0, 3), 'labels from 0 to 3, but num_classes .* 3'),
    (labelled(-1, 2), 'labels from -1 to 2'),
    ([DataSample().set_gt_score(torch.ones(4)) for _ in range(2)],
     'labels from 0 to 3'),
])
def test_head_names_labels_that_it_has_no_class_for(samples, part):
    with pytest.raises(ValueError, match=part):
        LinearHead(3, 5).loss(features(2, 5), samples)


class Ignoring(nn.CrossEntropyLoss):
    """A loss of a user's own that leaves a class number out."""

    def forward(self, scores, labels, avg_factor):
        return super().forward(scores, labels)


@pytest.mark.parametrize('loss, ignored', [
    (dict(type='CrossEntropyLoss'), -100), (Ignoring(), -100),
    (Ignoring(ignore_index=255), 255)])
def test_labels_that_the_loss_ignores_pass_as_in_the_stock_head(loss, ignored):
    ours = LinearHead(3, 5, loss=loss)
    stock = MODELS.build(dict(type='LinearClsHead', num_classes=3,
                              in_channels=5, loss=loss))
    stock.load_state_dict(ours.state_dict())
    for labels in ((0, ignored, 2), (ignored, ) * 3):
        found, expected = (head.loss((features(3, 5), ), labelled(*labels))[
            'loss'] for head in (ours, stock))
        assert torch.equal(found, expected) or found.isnan()
    with pytest.raises(ValueError, match='labels from 0 to 3'):
        ours.loss(features(3, 5), labelled(0, ignored, 3))


def test_labels_on_a_gpu_are_not_waited_for():
    with FakeTensorMode(), torch.device('cuda'):
        head = LinearHead(3, 5)
        samples = [DataSample(gt_label=torch.zeros(1, dtype=torch.long))
                   for _ in range(4)]
        # a number that is read off a fake tensor is an error
        loss = head.loss(torch.empty(4, 5), samples)['loss']
    assert loss.device.type == 'cuda'


def test_labels_are_checked_ahead_of_their_way_to_a_gpu():
    made = MODELS.build(dict(type='TimmFeatureClassifier', head=linear(512),
                             backbone=dict(type='ResNet', depth=18)))
    model = copy.deepcopy(made)  # as EMA does
    made.head.num_classes = 9
    model.data_preprocessor._device = torch.device('cuda')
    with pytest.raises(ValueError, match='labels from 0 to 3'):
        model.data_preprocessor(dict(
            inputs=[torch.zeros(3, 8, 8)] * 2,
            data_samples=labelled(0, 3)), True)


def test_a_test_with_labels_that_there_is_no_class_for_is_refused():
    model = MODELS.build(dict(type='TimmFeatureClassifier', head=linear(512),
                              backbone=dict(type='ResNet', depth=18))).eval()
    inputs = [torch.zeros(3, 8, 8)] * 2
    with pytest.raises(ValueError, match='labels from 1 to 3'):
        model.data_preprocessor(dict(inputs=inputs,
                                     data_samples=labelled(1, 3)))
    for samples in (labelled(0, 2), [DataSample(), DataSample()]):
        model.data_preprocessor(dict(inputs=inputs, data_samples=samples))


def test_head_names_images_without_labels():
    with pytest.raises(ValueError, match='images have no labels'):
        LinearHead(3, 5).loss(features(2, 5), [DataSample(), DataSample()])


def test_head_names_maps():
    with pytest.raises(ValueError, match='put a GAPNeck ahead'):
        LinearHead(3, 5)(features(2, 5, 4, 4))


# --- together, and mixed with stock parts ----------------------------------

OURS = dict(type='TimmFeatureBackbone', model_name='test_nfnet')
STOCK = dict(type='ResNet', depth=18)


def linear(width, **kwargs):
    return dict(type='LinearHead', num_classes=3, in_channels=width, **kwargs)


@pytest.mark.parametrize('backbone, neck, head', [
    (OURS, [dict(type='GAPNeck'), dict(type='BNNeck', in_channels=192)],
     linear(192)),
    (OURS, dict(type='GAPNeck'), linear(192, bias=False, dropout=0.1)),
    (STOCK, [dict(type='GAPNeck'), dict(type='BNNeck', in_channels=512)],
     linear(512)),
    (STOCK, dict(type='GlobalAveragePooling'), linear(512)),
    (OURS, [dict(type='GlobalAveragePooling'),
            dict(type='BNNeck', in_channels=192)], linear(192)),
    (OURS, dict(type='GlobalAveragePooling'),
     dict(type='LinearClsHead', num_classes=3, in_channels=192)),
    (OURS, [dict(type='GAPNeck'), dict(type='BNNeck', in_channels=192)],
     dict(type='LinearClsHead', num_classes=3, in_channels=192)),
    (OURS, dict(type='GlobalAveragePooling'),
     dict(type='ArcFaceClsHead', num_classes=3, in_channels=192)),
    (OURS, dict(type='GAPNeck'),
     dict(type='ArcFaceClsHead', num_classes=3, in_channels=192)),
    (OURS, dict(type='GlobalAveragePooling'),
     dict(type='StackedLinearClsHead', num_classes=3, in_channels=192,
          mid_channels=[8])),
    (OURS, dict(type='GeneralizedMeanPooling'), linear(192)),
])
def test_parts_mix_under_the_stock_classifier(backbone, neck, head):
    model = MODELS.build(
        dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head))
    model.init_weights()
    x = features(4, 3, 64, 64)
    model.train()
    model(x, labelled(0, 1, 2, 0), mode='loss')['loss'].backward()
    assert not [n for n, p in model.named_parameters()
                if p.requires_grad and p.grad is None]
    model.eval()
    predictions = model(x, labelled(0, 1, 2, 0), mode='predict')
    assert [len(p.pred_score) for p in predictions] == [3] * 4


def test_parts_mix_with_the_multi_label_head():
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=OURS,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='MultiLabelLinearClsHead',
                num_classes=3,
                in_channels=192)))
    x, samples = features(2, 3, 64, 64), [
        DataSample().set_gt_score(torch.tensor([1., 0., 1.]))
        for _ in range(2)
    ]
    model.train()
    model(x, samples, mode='loss')['loss'].backward()
    assert len(model(x, samples, mode='predict')[0].pred_score) == 3


def test_classifier_computes_gap_bn_linear_of_the_bare_network():
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=OURS,
            neck=[dict(type='GAPNeck'), dict(type='BNNeck', in_channels=192)],
            head=linear(192)))
    model.init_weights()
    model.train()
    model(features(4, 3, 64, 64))  # statistics
    model.eval()
    x, net = features(2, 3, 64, 64), model.backbone.timm_model
    pooled = by_hand(net.final_conv(net.stages(net.stem(x))))
    bn, fc = model.neck[1].bn, model.head.fc
    z = (pooled - bn.running_mean) / (bn.running_var + bn.eps).sqrt()
    expected = (z * bn.weight + bn.bias) @ fc.weight.T + fc.bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize('part, kwargs', [
    ('BNNeck', dict(neck=[dict(type='GAPNeck'),
                          dict(type='BNNeck', in_channels=64)],
                    head=linear(192))),
    ('LinearHead', dict(neck=dict(type='GAPNeck'), head=linear(64))),
])
def test_wrong_width_names_the_part_and_both_widths(part, kwargs):
    model = MODELS.build(
        dict(type='ImageClassifier', backbone=OURS, **kwargs)).eval()
    with pytest.raises(ValueError) as info:
        model(features(2, 3, 64, 64))
    text = str(info.value)
    assert '\n' not in text
    for piece in (part, '64', '192'):
        assert piece in text


def test_several_levels_are_classified_by_the_last():
    backbone = TimmFeatureBackbone('test_resnet', out_indices=(1, 4)).eval()
    maps = backbone(features(2, 3, 64, 64))
    head = LinearHead(3, backbone.out_channels[-1])
    torch.testing.assert_close(
        head(GAPNeck()(maps)), head(by_hand(maps[-1])))
