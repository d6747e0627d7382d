# Parameters, gradients and optimizer states divided among the processes, part
# by part (PyTorch's FSDP). Needs GPUs: PyTorch has none of it for CPUs.
# Checkpoints are gathered, so that they are like all others.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy=dict(
            type='timm_auto_wrap_policy', min_num_params=100_000)))
