_base_ = [
    '../_base_/models/convnext_tiny.py', '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
