_base_ = [
    '../_base_/models/simsiam.py', '../_base_/datasets/two_views.py',
    '../_base_/schedules/sgd_100e_simsiam.py', '../_base_/default_runtime.py'
]
model = dict(backbone=dict(model_name='resnet50'))
default_hooks = dict(checkpoint=dict(save_best=None))
