_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/voc.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
model = dict(
    backbone=dict(model_name='resnet50'),
    data_preprocessor=dict(to_onehot=True),
    head=dict(type='MultiLabelLinearClsHead', num_classes=20, _delete_=True))
