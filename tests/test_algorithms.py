"""Algorithms of MMPretrain with our backbone: an epoch, an evaluation."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

from commands import python
from folders import voc
from gap_plugin import TimmFeatureBackbone
from networks import full
from runs import PIPELINE, data, mean_precision, model, runner, top1

# a convolutional network and a transformer
NETWORKS = ['test_efficientnet', full('test_vit')]
WIDTH = dict(test_efficientnet=256, test_vit=64)


def mlp(into, out, **settings):
    return dict(type='NonLinearNeck', in_channels=into, hid_channels=32,
                out_channels=out, **{'with_avg_pool': False, **settings})


def algorithm(kind, network):
    """The parts that each one's own paper joins, small."""
    width = WIDTH[network]
    first = mlp(width, 16, with_avg_pool=True)
    cosine = dict(type='CosineSimilarityLoss')
    latent = dict(type='LatentPredictHead', loss=cosine,
                  predictor=mlp(16, 16))
    parts = {
        'SimCLR': dict(neck=first, head=dict(
            type='ContrastiveHead', loss=dict(type='CrossEntropyLoss'),
            temperature=0.1)),
        'BYOL': dict(neck=first, head=latent, base_momentum=0.01),
        'SimSiam': dict(neck=first, head=latent),
        'MoCoV3': dict(neck=first, base_momentum=0.01, head=dict(
            type='MoCoV3Head', predictor=mlp(16, 16),
            loss=dict(type='CrossEntropyLoss', loss_weight=2.),
            temperature=1.)),
        'BarlowTwins': dict(neck=first, head=dict(
            type='LatentCrossCorrelationHead', in_channels=16,
            loss=dict(type='CrossCorrelationLoss'))),
        'SwAV': dict(
            neck=dict(type='SwAVNeck', in_channels=width, hid_channels=32,
                      out_channels=16, with_avg_pool=True),
            head=dict(type='SwAVHead', loss=dict(
                type='SwAVLoss', feat_dim=16, epsilon=0.05, temperature=0.1,
                num_prototypes=12, num_crops=[2, 2]))),
    }[kind]
    backbone = dict(type='TimmFeatureBackbone', model_name=network,
                    img_size=32)
    if kind == 'SwAV' and 'vit' in network:  # crops of two sizes
        backbone['timm_kwargs'] = dict(dynamic_img_size=True)
    return dict(type=kind, backbone=backbone,
                data_preprocessor=dict(
                    type='SelfSupDataPreprocessor', mean=[127.5] * 3,
                    std=[127.5] * 3), **parts)


def views(kind):
    """Two views of an image; for SwAV two small crops more."""
    flip = [dict(type='Resize', scale=(32, 32)),
            dict(type='RandomCrop', crop_size=28),
            dict(type='Resize', scale=(32, 32))]
    small = [dict(type='Resize', scale=(32, 32)),
             dict(type='RandomCrop', crop_size=16)]
    multi = dict(type='MultiView', num_views=2, transforms=[flip])
    if kind == 'SwAV':
        multi.update(num_views=[2, 2], transforms=[flip, small])
    return [multi, dict(type='PackInputs')]


ALGORITHMS = ['SimCLR', 'BYOL', 'SimSiam', 'MoCoV3', 'BarlowTwins', 'SwAV']


@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('kind', ALGORITHMS)
def test_self_supervision_trains_what_a_probe_then_takes(
        kind, network, tmp_path):
    hooks = dict(SimSiam=[dict(type='SimSiamHook', fix_pred_lr=True, lr=.05)])
    run = runner(
        tmp_path, model=algorithm(kind, network),
        train_dataloader=data('train', pipeline=views(kind)),
        val_dataloader=None, val_cfg=None, val_evaluator=None,
        custom_hooks=hooks.get(kind))
    # head layers that the map never meets are taken out: all have gradients
    start = {n: p.detach().clone() for n, p in
             run.model.backbone.named_parameters()}
    run.train()
    assert np.isfinite(run.message_hub.get_scalar('train/loss').data[0]).all()
    trained = dict(run.model.backbone.named_parameters())
    assert all(not torch.equal(value, trained[name])
               for name, value in start.items())

    # its evaluation: the backbone, frozen, with a linear layer
    probe = model(network, frozen_stages='all',
                  checkpoint_path=str(tmp_path / 'epoch_1.pth'))
    linear = runner(tmp_path / 'linear', model=probe)
    for name, value in linear.model.backbone.named_parameters():
        assert torch.equal(value, trained[name])
    linear.train()
    assert linear.val()['accuracy/top1'] == pytest.approx(
        top1(linear.model, linear.val_dataloader))
    for name, value in linear.model.backbone.named_parameters():
        assert torch.equal(value, trained[name])


@pytest.mark.parametrize('network', NETWORKS)
def test_a_teacher_of_momentum_is_a_copy(network):
    init_default_scope('mmpretrain')
    byol = MODELS.build(algorithm('BYOL', network))
    target = next(m for m in byol.target_net.modules()
                  if isinstance(m, TimmFeatureBackbone))
    own = dict(byol.backbone.named_parameters())
    for name, value in target.named_parameters():
        assert value is not own[name] and not value.requires_grad
        assert torch.equal(value, own[name])


RETRIEVAL = '''
from mmpretrain.registry import DATASETS
from gap_plugin import Digits


@DATASETS.register_module()
class Queries(Digits):
    """Images whose ground truth is where a gallery has their class."""

    def load_data_list(self):
        gallery = Digits('train', indices=40)
        labels = [gallery[i]['gt_label'] for i in range(40)]
        rows = super().load_data_list()
        for row in rows:
            row['gt_label'] = [i for i, label in enumerate(labels)
                               if label == row['gt_label']]
        return rows
'''


@pytest.mark.parametrize('network', NETWORKS)
def test_images_are_retrieved_by_an_image(network, tmp_path):
    (tmp_path / 'queries.py').write_text(RETRIEVAL)
    cfg = Config(dict(
        model=dict(
            type='ImageToImageRetriever',
            image_encoder=[model(network)['backbone'], dict(type='GAPNeck'),
                           dict(type='BNNeck', in_channels=WIDTH[network])],
            head=dict(type='ArcFaceClsHead', num_classes=10,
                      in_channels=WIDTH[network]),
            prototype=data('train', 40)),
        train_dataloader=data('train'), val_dataloader=data('test', 20),
        train_cfg=dict(by_epoch=True, max_epochs=1), val_cfg=dict(),
        test_cfg=dict(), val_evaluator=[
            dict(type='RetrievalRecall', topk=(1, 5)),
            dict(type='RetrievalAveragePrecision', topk=5)],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        custom_hooks=[dict(type='PrepareProtoBeforeValLoopHook')],
        default_scope='mmpretrain'))
    init_default_scope('mmpretrain')
    cfg.model.prototype.sampler.shuffle = False
    cfg.val_dataloader.dataset.type = 'Queries'
    cfg.test_dataloader, cfg.test_evaluator = (cfg.val_dataloader,
                                               cfg.val_evaluator)
    cfg.dump(tmp_path / 'config.py')
    for args in (['train'], ['test', 'w/epoch_1.pth']):
        python('gap_plugin.stock', '--import', 'queries', args[0],
               'config.py', *args[1:], '--work-dir', 'w', cwd=tmp_path)
    (result, ) = tmp_path.glob('w/*/*.json')
    metrics = json.loads(result.read_text())
    # by hand: queries that find their class among the k most similar
    retriever = MODELS.build(cfg.model).eval()
    retriever.load_state_dict(torch.load(
        tmp_path / 'w' / 'epoch_1.pth')['state_dict'])
    vectors, labels = [], []
    for loader in (cfg.model.prototype, data('test', 20)):
        images = DATASETS.build(loader['dataset'])
        x = retriever.data_preprocessor(dict(inputs=torch.stack(
            [row['inputs'] for row in images])))['inputs']
        with torch.no_grad():
            (found, ) = retriever.extract_feat(x)
        vectors.append(torch.nn.functional.normalize(found))
        labels.append(torch.tensor([
            images.get_data_info(i)['gt_label'] for i in range(len(images))]))
    nearest = (vectors[1] @ vectors[0].T).argsort(1, descending=True)
    right = labels[0][nearest] == labels[1][:, None]
    for k in (1, 5):
        assert metrics[f'retrieval/Recall@{k}'] == pytest.approx(
            100 * right[:, :k].any(1).float().mean().item(), abs=1e-3)


@pytest.mark.parametrize('network', NETWORKS)
def test_several_labels_an_image(network, tmp_path):
    root = str(voc(tmp_path / 'voc'))
    several = model(network)
    several['head'] = dict(type='MultiLabelLinearClsHead', num_classes=20)
    several['data_preprocessor'] = dict(to_onehot=True)
    keys = ('sample_idx', 'img_path', 'ori_shape', 'img_shape',
            'gt_label_difficult')
    loaders = {}
    for split in ('trainval', 'test'):
        loaders[split] = data('test', None, 4)
        loaders[split]['dataset'] = dict(
            type='VOC', data_root=root, split=split,
            pipeline=[dict(type='LoadImageFromFile'), PIPELINE[0],
                      dict(type='PackInputs', meta_keys=keys)])
    run = runner(
        tmp_path, model=several, train_dataloader=loaders['trainval'],
        val_dataloader=loaders['test'], val_evaluator=[
            dict(type='VOCMultiLabelMetric'), dict(type='VOCAveragePrecision')
        ])
    run.train()
    # filled in for the one-hot labels
    assert run.model.data_preprocessor.num_classes == 20
    assert run.val()['multi-label/mAP'] == pytest.approx(mean_precision(
        run.model, run.val_dataloader), rel=1e-4)


@pytest.mark.parametrize('network', NETWORKS)
def test_several_tasks_an_image(network, tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(
            tmp_path / f'{i}.png')
        rows.append(dict(img_path=f'{i}.png',
                         gt_label=dict(colour=i % 2, shape=i % 3)))
    tasks = [dict(name='colour', type='single-label', categories=['a', 'b']),
             dict(name='shape', type='single-label',
                  categories=['c', 'd', 'e'])]
    (tmp_path / 'all.json').write_text(json.dumps(dict(
        metainfo=dict(dataset_name='two', task_name='two', tasks=tasks),
        data_list=rows)))
    tasked = model(network)
    tasked['head'] = dict(
        type='MultiTaskHead',
        task_heads=dict(colour=dict(type='LinearHead', num_classes=2),
                        shape=dict(type='LinearHead', num_classes=3)))
    loader = data('test', None, 4)
    loader['dataset'] = dict(
        type='MultiTaskDataset', ann_file='all.json',
        data_root=str(tmp_path), data_prefix='',
        pipeline=[dict(type='LoadImageFromFile'), PIPELINE[0],
                  dict(type='PackMultiTaskInputs', multi_task_fields=[
                      'gt_label'])])
    accuracy = [dict(type='Accuracy')]
    run = runner(
        tmp_path / 'w', model=tasked, train_dataloader=loader,
        val_dataloader=loader, val_evaluator=dict(
            type='MultiTasksMetric',
            task_metrics=dict(colour=accuracy, shape=accuracy)))
    run.train()
    metrics = run.val()
    assert {'colour_accuracy/top1', 'shape_accuracy/top1'} <= set(metrics)
