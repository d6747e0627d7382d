# Neck and head alone, on a frozen backbone: no decay. The rate is that of
# adamw_30e.py, which sets no head ahead of a backbone that does not move.
_base_ = ['adamw_30e.py']
optim_wrapper = dict(optimizer=dict(lr=3e-4, weight_decay=0.))
