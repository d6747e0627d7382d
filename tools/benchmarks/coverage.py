"""Which of timm's networks give pooled features of the right width.

MMPretrain's ``TIMMBackbone`` + ``GlobalAveragePooling`` against
``TimmFeatureBackbone`` + ``GAPNeck``, over all names, on the meta device. The
right width is that of the last map of timm's ``forward_features``, found
here apart from both.
"""

import argparse
import collections
import multiprocessing
import warnings

import timm
import torch

import paired


def map_width(name: str) -> int:
    """Channels of the network's last map, from timm alone."""
    model = timm.create_model(name, num_classes=0).eval()
    x = torch.zeros(1, *model.pretrained_cfg['input_size'])
    y = model.forward_features(x)
    if torch.is_tensor(y) and y.ndim == 4:
        nhwc = getattr(model, 'output_fmt', None) == 'NHWC'
        return y.shape[-1 if nhwc else 1]
    # tokens, or several tensors: the last level; its width where it has
    # passed a neck
    last = model.feature_info[-1]
    return last.get('num_chs_norm', last['num_chs'])


def outcome(side: str, name: str, width: int) -> str:
    """What a backbone and its pooling give for one network."""
    from mmpretrain.models import GlobalAveragePooling, TIMMBackbone

    from gap_plugin import GAPNeck, TimmFeatureBackbone
    try:
        if side == 'ours':
            backbone, neck = TimmFeatureBackbone(name), GAPNeck()
        else:
            backbone, neck = TIMMBackbone(name), GlobalAveragePooling()
        size = timm.get_pretrained_cfg(name).input_size
        backbone.eval()  # which gives None for MMPretrain's backbones
        pooled = neck(backbone(torch.zeros(1, *size)))
    except (AssertionError, AttributeError, IndexError, RuntimeError,
            TypeError, ValueError, NotImplementedError):
        return 'cannot be built or run'
    if len(pooled) != 1:
        return 'several tensors'
    if pooled[0].shape == (1, width):
        return 'right width'
    if pooled[0].shape[1] > width / 2 and pooled[0].ndim == 2:
        return 'another width'
    return 'wrong axis pooled'


def both(name: str) -> tuple[str, str, str]:
    """The outcome of both sides."""
    import logging
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with torch.device('meta'), torch.no_grad():
        width = map_width(name)
        return name, outcome('ours', name, width), outcome(
            'stock', name, width)


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--filter', default='*', help='names, by wildcard')
    parser.add_argument('--every', type=int, default=1,
                        help='take every so many names')
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--out', help='JSON file for the outcome per name')
    args = parser.parse_args()
    names = timm.list_models(args.filter)[::args.every]
    with multiprocessing.get_context('spawn').Pool(args.workers) as pool:
        rows = list(pool.imap_unordered(both, names, chunksize=8))
    for i, side in ((1, 'TimmFeatureBackbone + GAPNeck'),
                    (2, 'TIMMBackbone + GlobalAveragePooling')):
        print(side)
        for what, count in collections.Counter(
                row[i] for row in rows).most_common():
            print(f'  {count:5} {what}')
    if args.out:
        paired.write(args.out, [
            dict(name=n, ours=a, stock=b) for n, a, b in sorted(rows)])


if __name__ == '__main__':
    main()
