model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='TimmFeatureBackbone',
        model_name='vit_small_patch16_224',
        pretrained=True),
    neck=[dict(type='GAPNeck'),
          dict(type='BNNeck', in_channels=384)],
    head=dict(type='LinearHead', num_classes=1000, in_channels=384))

# what the weights were trained with, on a scale of 0 to 255
data_preprocessor = dict(
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    to_rgb=True)
