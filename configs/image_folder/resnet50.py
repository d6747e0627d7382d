_base_ = [
    '../_base_/models/resnet50.py', '../_base_/datasets/image_folder.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
model = dict(head=dict(num_classes=2))
