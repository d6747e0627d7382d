_base_ = [
    '../image_folder/vit_small_patch16_224.py',
    '../_base_/strategies/fsdp.py'
]
