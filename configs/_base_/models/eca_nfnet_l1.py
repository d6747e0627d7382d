model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='TimmFeatureBackbone',
        model_name='eca_nfnet_l1',
        out_feature='forward_features',  # better than final_conv, see README
        pretrained=True),
    neck=[dict(type='GAPNeck'),
          dict(type='BNNeck', in_channels=3072)],
    head=dict(type='LinearHead', num_classes=1000, in_channels=3072))

# what the weights were trained with, on a scale of 0 to 255
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
