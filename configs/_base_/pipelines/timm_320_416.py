# Trained at 320, tested at 416: objects look larger in random crops than in
# whole images (https://arxiv.org/abs/1906.06423).
train_320 = [
    dict(type='LoadTimmImage'),
    dict(type='TimmTrainTransform', img_size=320),
    dict(type='PackInputs'),
]
test_416 = [
    dict(type='LoadTimmImage'),
    dict(type='TimmTestTransform', img_size=416, crop_pct=1.0),
    dict(type='PackInputs'),
]
