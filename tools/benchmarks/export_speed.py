"""Images a second: an exported ONNX file by onnxruntime against PyTorch.

The same classifier, on the CPU, in turn. Both get preprocessed images, and
all threads that torch takes here (``OMP_NUM_THREADS``).
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import torch

import paired

NETWORKS = ('tf_efficientnet_lite0', 'resnet18', 'mobilenetv3_small_100',
            'convnext_atto', 'deit_tiny_patch16_224', 'resnet50')


def measure(name: str, batch: int, rounds: int) -> dict:
    """Seconds of both sides for a batch of random images."""
    from mmpretrain.registry import MODELS

    from gap_plugin.export import open_onnx, write_onnx

    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name=name),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type='LinearHead', num_classes=10))).eval()
    x = torch.randn(batch, 3, *model.backbone.image_size)
    given = dict(images=x.numpy())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'network.onnx'
        write_onnx(model, (torch.cat([x, x])[:2], ), path)
        session = open_onnx(path, torch.get_num_threads())
    with torch.inference_mode():
        return dict(network=name, batch=batch, **paired.paired_ratio(
            lambda: session.run(None, given), lambda: model(x), rounds))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=NETWORKS)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)
    rows = []
    print(f'{torch.get_num_threads()} threads, images/s\n'
          f'{"network":26}{"batch":>6}{"onnxruntime":>13}{"PyTorch":>9}'
          f'{"times":>7}')
    for name in args.networks:
        for batch, rounds in ((1, 25), (16, 7)):
            row = measure(name, batch, rounds)
            rows.append(row)
            print(f'{name:26}{batch:6}{batch / row["ours_s"]:13.1f}'
                  f'{batch / row["theirs_s"]:9.1f}{1 / row["ratio"]:7.2f}',
                  flush=True)
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
