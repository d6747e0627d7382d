# The paper's rate of 0.05 for 256 images a step, for the 32 of one process; of
# the predictor it stays as it is. For another number, change both by hand.
optim_wrapper = dict(
    optimizer=dict(
        type='SGD', lr=0.05 * 32 / 256, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(predictor=dict(fix_lr=True))))
param_scheduler = [dict(type='CosineAnnealingLR')]
custom_hooks = [
    dict(
        type='SimSiamHook',
        priority='HIGH',
        fix_pred_lr=True,
        lr=0.05 * 32 / 256)
]

train_cfg = dict(by_epoch=True, max_epochs=100)
