_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/image_folder.py',
    '../_base_/schedules/adamw_30e.py', '../_base_/default_runtime.py',
    '../_base_/pipelines/timm_320_416.py'
]
model = dict(
    backbone=dict(model_name='eca_nfnet_l1', out_feature='forward_features'),
    head=dict(num_classes=2))
train_dataloader = dict(dataset=dict(pipeline=_base_.train_320))
test_dataloader = val_dataloader = dict(dataset=dict(pipeline=_base_.test_416))
