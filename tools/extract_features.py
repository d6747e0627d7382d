r"""Store the pooled features of a config's images, by one pass over them.

    python tools/extract_features.py configs/digits/test_nfnet.py \\
        --checkpoint work_dirs/test_nfnet/epoch_12.pth

Each split becomes a folder of features.npy, labels.npy, sample_ids.npy and
store.json. A store that is there already, made by the same weights from the
same images, is kept; a run that was cut off goes on.
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS

from common import add_shared_flags, load_config
from gap_plugin.compat import init_cpu_group
from gap_plugin.probing import extract
from gap_plugin.probing.extraction import SPLITS


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--checkpoint', help='weights of the model; those '
                        'that the config loads by default')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, metavar='SPLIT',
                        default=['train', 'val'],
                        help='of train, val, test; train val by default')
    parser.add_argument('--out', help='folder for the stores; '
                        '<work-dir>/features by default')
    parser.add_argument('--dtype', choices=['float32', 'float16'],
                        default='float32', help='of the stored features')
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave unreadable images out')
    parser.add_argument('--force', action='store_true',
                        help='replace a store that something else has made')
    add_shared_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Extract."""
    args = parse_args()
    cfg = load_config(args)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    init_cpu_group(args.launcher)
    torch.manual_seed(0)  # what the config leaves unset is the same again
    model = MODELS.build(cfg.model)
    model.init_weights()
    if args.checkpoint or cfg.get('load_from'):
        load_checkpoint(model, args.checkpoint or cfg.load_from,
                        map_location='cpu')
    if torch.cuda.is_available():
        model.cuda()
    out = Path(args.out or Path(cfg.work_dir) / 'features')
    for split in args.splits:
        store = extract(
            model, cfg, split, out / split, dtype=args.dtype, amp=args.amp,
            skip_bad=args.skip_bad, force=args.force)
        print(f'{store.folder}: {len(store)} x {store.features.shape[1]} '
              f'{store.features.dtype}')


if __name__ == '__main__':
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f'{Path(__file__).name}: {error}')
