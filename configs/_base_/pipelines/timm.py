# Size, crop and interpolation of the network's weights. Pillow, for OpenCV
# decodes and resizes in another way.
train_pipeline = [
    dict(type='LoadTimmImage'),
    dict(type='TimmTrainTransform'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadTimmImage'),
    dict(type='TimmTestTransform'),
    dict(type='PackInputs'),
]
