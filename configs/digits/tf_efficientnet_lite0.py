_base_ = [
    '../_base_/models/tf_efficientnet_lite0.py',
    '../_base_/datasets/digits.py', '../_base_/pipelines/digits_96.py',
    '../_base_/schedules/adamw_3e.py', '../_base_/default_runtime.py'
]
model = dict(head=dict(num_classes=10))
train_dataloader = dict(
    batch_size=32, dataset=dict(pipeline=_base_.large_train_pipeline))
test_dataloader = val_dataloader = dict(
    dataset=dict(pipeline=_base_.large_test_pipeline))
