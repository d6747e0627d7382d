# Several labels an image: PASCAL VOC 2007, or a folder laid out as it is.
_base_ = ['../pipelines/timm.py']

_base_.test_pipeline[-1].meta_keys = (
    'sample_idx', 'img_path', 'ori_shape', 'img_shape', 'gt_label_difficult')
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='VOC',
        data_root='data/VOC2007',
        split='trainval',
        pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='VOC',
        data_root='data/VOC2007',
        split='test',
        pipeline={{_base_.test_pipeline}}))
test_dataloader = val_dataloader

# the best checkpoint is chosen by the first
val_evaluator = [
    dict(type='VOCAveragePrecision'),
    dict(type='VOCMultiLabelMetric')
]
test_evaluator = val_evaluator
