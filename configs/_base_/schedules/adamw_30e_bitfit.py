# Biases and norms, which decay nowhere, and the head.
_base_ = ['adamw_30e.py']
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0., bias_decay_mult=0.))
