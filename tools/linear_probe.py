r"""Train neck and head of a config on stored features of its backbone.

    python tools/linear_probe.py configs/digits/test_nfnet.py --freeze \\
        --checkpoint work_dirs/test_nfnet/epoch_12.pth --epochs 100

One pass over the images, then any number of epochs. Writes
<work-dir>/linear_probe.pth, a checkpoint of the whole model for test.py.
"""

import argparse
import sys
from pathlib import Path

import gap_plugin
from common import (
    build_classifier,
    extract_splits,
    load_config,
    store_parser,
)
from gap_plugin.probing import check_frozen, probe, save_whole


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = store_parser(__doc__)
    parser.add_argument('--epochs', type=int, default=100,
                        help='the schedule of the config is stretched to it')
    parser.add_argument('--freeze', action='store_true',
                        help='probe a backbone that the config trains')
    parser.add_argument('--no-validate', action='store_true',
                        help='no validation; the last epoch is kept')
    parser.add_argument('--resume', action='store_true',
                        help='go on from the last checkpoint of the probe')
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f'--epochs must be 1 at least, got {args.epochs}')
    if args.launcher != 'none':
        parser.error('--launcher: the probe is one process; extract with '
                     'torchrun tools/extract_features.py first')
    return args


def main() -> None:
    """Extract if needed, and probe."""
    args = parse_args()
    cfg = load_config(args)
    model = build_classifier(cfg, args)
    if not args.freeze:
        check_frozen(model)
    work_dir = Path(cfg.work_dir)
    stores = extract_splits(
        model, cfg, args,
        ('train', ) if args.no_validate else ('train', 'val'))
    metainfo = stores['train'].description['metainfo']
    metrics = probe(
        model, cfg, stores['train'], stores.get('val'), epochs=args.epochs,
        work_dir=work_dir / 'probe', metainfo=metainfo, resume=args.resume)
    path = work_dir / 'linear_probe.pth'
    save_whole(model, path, dict(
        dataset_meta=metainfo, cfg=cfg.pretty_text, epoch=args.epochs,
        gap_plugin_version=gap_plugin.__version__))
    told = ', '.join(f'{name} {value:.4f}' for name, value in metrics.items())
    print(f'{path}: {told or "not validated"}')


if __name__ == '__main__':
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f'{Path(__file__).name}: {error}')
