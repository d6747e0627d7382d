_base_ = [
    '../image_folder/vit_small_patch16_224.py',
    '../_base_/strategies/fsdp.py'
]
# the names of divided parameters tell no depth
optim_wrapper = dict(
    _delete_=True,
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0))
