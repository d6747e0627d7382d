# Gradients and optimizer states divided among the processes (ZeRO stage 2),
# in bfloat16. DeepSpeed keeps a checkpoint in a folder.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    bf16=dict(enabled=True),
    inputs_to_half=['inputs'],
    zero_optimization=dict(stage=2),
    gradient_clipping=5.0)
