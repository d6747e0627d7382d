_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/image_folder.py',
    '../_base_/schedules/adamw_30e_bitfit.py', '../_base_/default_runtime.py'
]
model = dict(
    backbone=dict(model_name='vit_small_patch16_224', tune='bias_and_norm'),
    head=dict(num_classes=2))
