_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
model = dict(backbone=dict(model_name='swin_tiny_patch4_window7_224'))
