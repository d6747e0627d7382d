# The last map of a timm network, pooled, normalised and classified. A leaf
# names the network; widths, mean and std follow from it.
model = dict(
    type='TimmFeatureClassifier',
    backbone=dict(
        type='TimmFeatureBackbone', pretrained=True),
    neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
    head=dict(type='LinearHead', num_classes=1000))
