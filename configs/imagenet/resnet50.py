_base_ = [
    '../_base_/models/resnet50.py', '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
