"""List timm's networks, or print all that a config needs to know of one.

gap-plugin backbones '*nfnet*' --pretrained --max-params 30
gap-plugin backbones eca_nfnet_l1
"""

import argparse
import json
import logging
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch.utils.flop_counter import FlopCounterMode

from ..models import TimmFeatureBackbone
from ..timm_network import check_name, data_source
from . import console
from .command import command
from .flags import parser


def parameters(name: str) -> int:
    """Number of parameters of the network without its classifier."""
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=0)
    return sum(p.numel() for p in model.parameters())


def multiply_adds(backbone: torch.nn.Module,
                  size: tuple[int, int]) -> int | None:
    """Multiply-adds for one image, None where they cannot be counted.

    Half of what ``torch.utils.flop_counter`` counts: convolutions and
    matrix products, attention included.
    """
    x = torch.zeros(1, backbone.in_channels, *size, device='meta')
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            backbone(x)
    except (NotImplementedError, RuntimeError):
        return None  # a few networks do not run on the meta device
    return counter.get_total_flops() // 2


def describe(name: str) -> dict[str, Any]:
    """What a config needs to know of one network.

    Args:
        name: Any name of timm.

    Raises:
        ValueError: If timm does not know it.
    """
    with torch.device('meta'):
        backbone = TimmFeatureBackbone(name).eval()
    model, cfg = backbone.timm_model, backbone.pretrained_cfg
    count = sum(p.numel() for p in model.parameters())
    source = data_source(name)
    train, test = source.settings(False), source.settings(True)
    base = split_model_name_tag(name)[0]
    macs = multiply_adds(backbone, train.size)
    return dict(
        name=name,
        parameters=count,
        multiply_adds=macs,
        out_channels=backbone.out_channels[0],
        out_stride=backbone.out_strides[0],
        levels=[
            dict(index=i, module=level['module'], channels=level['num_chs'],
                 stride=level['reduction'])
            for i, level in enumerate(model.feature_info)
        ],
        final_conv=hasattr(model, 'final_conv'),
        input_size=train.size,
        test_input_size=test.size,
        fixed_input_size=bool(cfg.get('fixed_input_size')),
        interpolation=train.interpolation,
        crop_pct=train.crop_pct,
        test_crop_pct=test.crop_pct,
        crop_mode=train.crop_mode,
        mean=train.mean,
        std=train.std,
        licence=cfg.get('license'),
        source=cfg.get('hf_hub_id') or cfg.get('url') or None,
        origin=cfg.get('origin_url'),
        paper=cfg.get('paper_name'),
        weights=[f'{n}' for n in timm.list_models(
            f'{base}.*', pretrained=True)])


def listing(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The networks that pass the filters."""
    rows = []
    for name in timm.list_models(args.model, pretrained=args.pretrained):
        cfg = get_pretrained_cfg(name)
        size = cfg.input_size[1:]
        if args.min_size and min(size) < args.min_size:
            continue
        row = dict(name=name, input_size=size,
                   test_input_size=(cfg.test_input_size or cfg.input_size)[1:])
        if args.max_params is not None:
            row['parameters'] = parameters(name)
            if row['parameters'] > args.max_params * 1e6:
                continue
        rows.append(row)
    return rows


def show_one(row: dict[str, Any]) -> None:
    """Print a description for reading."""
    def size(key: str) -> str:
        return ' x '.join(map(str, row[key]))

    macs = row['multiply_adds']
    fixed = ' (needs img_size for another)' if row['fixed_input_size'] else ''
    lines = {
        'parameters': f'{row["parameters"] / 1e6:.2f} M, without classifier',
        'multiply-adds': f'{macs / 1e9:.3f} G at {size("input_size")}'
        if macs is not None else 'cannot be counted',
        'map': f'{row["out_channels"]} channels, stride {row["out_stride"]}',
        'final_conv': 'yes' if row['final_conv'] else
        'no (the map of forward_features is taken)',
        'input size': f'{size("input_size")}{fixed}',
        'test size': f'{size("test_input_size")}, crop_pct '
        f'{row["test_crop_pct"]}',
        'interpolation': row['interpolation'],
        'crop': f'{row["crop_mode"]}, crop_pct {row["crop_pct"]}',
        'mean': ', '.join(f'{v:.4g}' for v in row['mean']),
        'std': ', '.join(f'{v:.4g}' for v in row['std']),
        'licence': row['licence'] or 'not stated',
        'source': row['source'] or 'no weights',
        'origin': row['origin'] or '-',
        'paper': row['paper'] or '-',
        'weights': ', '.join(row['weights']) or 'none',
    }
    console.say(row['name'])
    for key, value in lines.items():
        console.say(f'  {key:14} {value}')
    console.say('  levels, for out_indices:')
    for level in row['levels']:
        console.say(f'    {level["index"]:3}  {level["module"]:24} '
              f'{level["channels"]:5} channels, stride {level["stride"]}')


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    found.add_argument('model', nargs='?', default='*',
                       help='a name, or a pattern of names')
    found.add_argument('--pretrained', action='store_true',
                       help='names with their weights tag')
    found.add_argument('--max-params', type=float, metavar='M',
                       help='at most so many million parameters, without '
                       'the classifier (every candidate is built)')
    found.add_argument('--min-size', type=int, metavar='PIXELS',
                       help='trained on images of at least this side')
    found.add_argument('--json', action='store_true',
                       help='for other programs')
    return found


def run(args: argparse.Namespace) -> None:
    """Print."""
    logging.disable(logging.CRITICAL)  # what timm tells of its defaults
    one = not any(c in args.model for c in '*?[')
    if one:
        check_name(args.model)
        result = describe(args.model)
    else:
        result = listing(args)
        if not result:
            raise ValueError(f'no network of timm fits {args.model!r} and '
                             'these filters: loosen them.')
    if args.json:
        console.say(json.dumps(result, indent=1))
    elif one:
        show_one(result)
    else:
        for row in result:
            size = ' x '.join(map(str, row['input_size']))
            count = (f'{row["parameters"] / 1e6:10.2f} M'
                     if 'parameters' in row else '')
            console.say(f'{row["name"]:60}{size:>12}{count}')
        console.note(f'{len(result)} networks')


main = command(flags, run)
