large_train_pipeline = [
    dict(type='Resize', scale=96, interpolation='bilinear'),
    dict(type='RandomCrop', crop_size=96, padding=8),
    dict(type='PackInputs'),
]
large_test_pipeline = [
    dict(type='Resize', scale=96, interpolation='bilinear'),
    dict(type='PackInputs'),
]
