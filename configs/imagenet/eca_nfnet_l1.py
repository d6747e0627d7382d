_base_ = [
    '../_base_/models/eca_nfnet_l1.py', '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py',
    '../_base_/pipelines/crop_320_416.py'
]
train_dataloader = dict(dataset=dict(pipeline=_base_.large_train_pipeline))
test_dataloader = val_dataloader = dict(
    dataset=dict(pipeline=_base_.large_test_pipeline))
