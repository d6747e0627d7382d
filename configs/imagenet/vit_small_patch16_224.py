_base_ = [
    '../_base_/models/vit_small_patch16_224.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py'
]
