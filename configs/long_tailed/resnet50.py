_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/image_folder.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
num_classes = 2  # also of the loss, which counts them as they come
model = dict(
    backbone=dict(model_name='resnet50'),
    head=dict(num_classes=num_classes,
              loss=dict(type='SeesawLoss', num_classes=num_classes)))
