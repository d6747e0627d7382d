# Parameters, gradients and optimizer states divided among the processes, block
# by block (PyTorch's FSDP). Needs GPUs: PyTorch has none of it for CPUs.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy=dict(
            type='timm_auto_wrap_policy', min_num_params=1_000_000)))
