model = dict(
    type='ImageClassifier',
    backbone=dict(type='TimmFeatureBackbone', model_name='test_nfnet'),
    neck=[dict(type='GAPNeck'),
          dict(type='BNNeck', in_channels=192)],
    head=dict(type='LinearHead', num_classes=10, in_channels=192))

data_preprocessor = dict(
    mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=False)
