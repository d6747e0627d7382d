model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='TimmFeatureBackbone',
        model_name='tf_efficientnet_lite0',
        checkpoint_path='weights/tf_efficientnet_lite0.safetensors'),
    neck=[dict(type='GAPNeck'),
          dict(type='BNNeck', in_channels=1280)],
    head=dict(type='LinearHead', num_classes=1000, in_channels=1280))

data_preprocessor = dict(
    mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
