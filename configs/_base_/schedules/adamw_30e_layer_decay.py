# Each block of the backbone moves by 0.75 of the one behind it, the last one
# by 0.75 of the head: MMPretrain's own constructor.
_base_ = ['adamw_30e.py']
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.75,
        norm_decay_mult=0.,
        flat_decay_mult=0.))
