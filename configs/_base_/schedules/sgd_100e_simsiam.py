# The paper's, for 256 images a step: the predictor's rate stays as it is.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(predictor=dict(fix_lr=True))))
param_scheduler = [dict(type='CosineAnnealingLR', end=100)]
custom_hooks = [
    dict(type='SimSiamHook', priority='HIGH', fix_pred_lr=True, lr=0.05)
]

train_cfg = dict(by_epoch=True, max_epochs=100)
auto_scale_lr = dict(base_batch_size=256)
