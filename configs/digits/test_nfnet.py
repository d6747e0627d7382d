_base_ = [
    '../_base_/models/test_nfnet.py', '../_base_/datasets/digits.py',
    '../_base_/schedules/adamw_12e_scratch.py', '../_base_/default_runtime.py'
]
