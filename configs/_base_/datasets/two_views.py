# A folder of images without classes, data/images/*, each seen in two ways at
# the size of the network. The hue stays, for MMCV 2.2 fails to turn it with
# numpy 2.
view = [
    dict(type='TimmTrainTransform', scale=(0.2, 1.), color_jitter=0.),
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[
            dict(
                type='ColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.4)
        ]),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989)),
    dict(
        type='GaussianBlur',
        magnitude_range=(0.1, 2.0),
        magnitude_std='inf',
        prob=0.5),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/images',
        with_label=False,
        pipeline=[
            dict(type='LoadTimmImage'),
            dict(type='MultiView', num_views=2, transforms=[view]),
            dict(type='PackInputs')
        ]))
