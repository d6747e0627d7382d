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

from common import (
    add_shared_flags,
    add_store_flags,
    build_classifier,
    load_config,
)
from gap_plugin.probing import SPLITS, extract


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, metavar='SPLIT',
                        default=['train', 'val'],
                        help='of train, val, test; train val by default')
    add_store_flags(parser)
    add_shared_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Extract."""
    args = parse_args()
    cfg = load_config(args)
    model = build_classifier(cfg, args)
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
