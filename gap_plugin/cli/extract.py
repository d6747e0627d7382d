r"""Store the pooled features of a config's images, by one pass over them.

    python tools/extract_features.py configs/digits/test_nfnet.py \\
        --checkpoint work_dirs/test_nfnet/epoch_12.pth

Each split becomes a folder of features.npy, labels.npy, sample_ids.npy and
store.json. A store that is there already, made by the same weights from the
same images, is kept; a run that was cut off goes on.
"""

import sys
from pathlib import Path

from common import (
    build_classifier,
    extract_splits,
    load_config,
    store_parser,
)
from gap_plugin.probing import SPLITS


def main() -> None:
    """Extract."""
    parser = store_parser(__doc__)
    parser.add_argument('--splits', nargs='+', choices=SPLITS, metavar='SPLIT',
                        default=['train', 'val'],
                        help='of train, val, test; train val by default')
    args = parser.parse_args()
    cfg = load_config(args)
    model = build_classifier(cfg, args)
    for store in extract_splits(model, cfg, args, args.splits).values():
        print(f'{store.folder}: {len(store)} x {store.features.shape[1]} '
              f'{store.features.dtype}')


if __name__ == '__main__':
    try:
        main()
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'{Path(__file__).name}: {error}')
