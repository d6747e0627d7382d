_base_ = [
    '../_base_/models/tf_efficientnet_lite0.py',
    '../_base_/datasets/digits.py', '../_base_/schedules/adamw_3e.py',
    '../_base_/default_runtime.py'
]
model = dict(head=dict(num_classes=10))
