_base_ = [
    '../_base_/models/gap_bn_linear.py', '../_base_/datasets/digits.py',
    '../_base_/schedules/adamw_3e.py', '../_base_/default_runtime.py'
]
weights = 'weights/tf_efficientnet_lite0.safetensors'
model = dict(
    backbone=dict(model_name='tf_efficientnet_lite0', pretrained=False,
                  checkpoint_path=weights, img_size=96),
    head=dict(num_classes=10))
train_dataloader = dict(batch_size=32)
