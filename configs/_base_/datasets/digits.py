# No flips, for 2 and 5 are mirror images; the size is that of the backbone.
train_pipeline = [
    dict(
        type='TimmTrainTransform',
        scale=(0.6, 1.0),
        ratio=(0.9, 1.1),
        hflip=0.,
        color_jitter=0.),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='TimmTestTransform', crop_pct=1.0),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='Digits', split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Digits', split='test', pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
