"""Which networks of timm become ONNX files, and how near they are to torch.

The smallest network of every module, in a classifier with a class activation
map, against onnxruntime. Norms and classifier get random values, for fresh
networks of many modules give almost the same for every image. A run that was
stopped goes on.
"""

import argparse
import gc
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import paired

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests'))


def spoilt(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose one-dimensional parameters and statistics are random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*model.backbone.named_parameters(),
                            *model.named_buffers()]:
            if value.ndim == 1 and value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.add_(0.1 * (noise.abs() if 'var' in name else noise))
        for value in model.head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model


def measure(name: str) -> dict:
    """Export one network, and compare."""
    from mmpretrain.registry import MODELS

    from gap_plugin.export.checking import compare
    from gap_plugin.export.onnx import open_onnx, write_onnx
    from gap_plugin.export.scores import Scores
    from networks import images

    torch.manual_seed(0)
    model = spoilt(MODELS.build(dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name=name),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type='LinearHead', num_classes=10))).eval())
    module = Scores(model, cam=True).eval()
    x = images(name, 3)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / 'network.onnx'
        start = time.perf_counter()
        try:
            write_onnx(module, (x[:2], ), path, outputs=module.outputs)
        except (ImportError, ValueError) as error:
            return dict(reason=str(error))
        seconds = time.perf_counter() - start
        expected = [y.numpy() for y in module(x)]
        found = open_onnx(path, 1).run(None, dict(images=x.numpy()))
        size = path.stat().st_size
    varies = expected[2].std((2, 3)) / abs(expected[2]).max((2, 3))
    return dict(seconds=seconds, megabytes=size / 1e6,
                image_size=list(x.shape[2:]),
                logits=compare(expected[1:2], found[1:2]),
                maps=compare(expected[2:], found[2:]),
                varies=float(varies.max()))


def of_each_module(description: str, out: str, measure: Callable,
                   whole: Callable = bool) -> list[dict]:
    """Rows of the smallest network of each module, as the flags say.

    Args:
        description: Of the script.
        out: File of the rows, by default. They are kept after each network.
        measure: Takes a name, gives a row.
        whole: Whether a row that is kept needs no other run.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--out', default=out,
                        help='JSON file of what was found, and is kept')
    parser.add_argument('--networks', nargs='+', help='all by default')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    from networks import SMALLEST
    rows = [row for row in paired.read(args.out) if whole(row)]
    known = {row['network'] for row in rows}
    for module, name in SMALLEST.items():
        if name in known or name not in (args.networks or [name]):
            continue
        rows.append(dict(module=module, network=name, **measure(name)))
        paired.write(args.out, rows)
        print(rows[-1], flush=True)
        gc.collect()
    return rows


def main() -> None:
    """Export all of them."""
    rows = of_each_module(__doc__, 'export_coverage.json', measure)
    good = [row for row in rows if 'reason' not in row]
    print(f'{len(good)} of {len(rows)} export; largest difference '
          f'{max(max(row["logits"], row["maps"]) for row in good):.2g}')


if __name__ == '__main__':
    main()
