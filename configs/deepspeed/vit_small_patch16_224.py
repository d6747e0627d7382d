_base_ = [
    '../image_folder/vit_small_patch16_224.py',
    '../_base_/strategies/deepspeed.py'
]
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
