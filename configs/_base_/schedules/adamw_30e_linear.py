# New layers alone: larger steps than where pretrained ones move, no decay.
_base_ = ['adamw_30e.py']
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.))
