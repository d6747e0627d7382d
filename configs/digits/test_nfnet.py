_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/digits.py',
    '../_base_/schedules/adamw_12e_scratch.py', '../_base_/default_runtime.py'
]
model = dict(
    backbone=dict(model_name='test_nfnet', pretrained=False, img_size=32),
    head=dict(num_classes=10))
