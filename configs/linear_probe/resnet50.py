_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/image_folder.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
model = dict(
    backbone=dict(model_name='resnet50', frozen_stages='all'),
    head=dict(num_classes=2))
