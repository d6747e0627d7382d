# Fine-tuning of pretrained networks, all layers. Neck and head are new, and
# ahead of the backbone; of a transformer, the blocks near the image are slower
# than those near the head. Of a frozen network, neck and head have a rate and
# a decay that follow the number of features.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=3e-4, weight_decay=0.05),
    constructor='FinetuneOptimWrapperConstructor',
    paramwise_cfg=dict(
        head_lr_mult=10., layer_decay_rate='auto', flat_decay_mult=0.,
        frozen=dict(lr=1e-3, weight_decay=0.3, width=1280)),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        end=3,
        convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', convert_to_iter_based=True),
]

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=64)
