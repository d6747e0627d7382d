"""What Pillow costs and what OpenCV would change, on real photos.

timm's evaluation transform by stock transforms, once with Pillow (as this
plugin writes it) and once with OpenCV (MMPretrain's default): time of loading
and transforming a JPEG, and the difference of the pixels from timm's own.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope
from PIL import Image
from skimage import data
from timm.data import create_transform, resolve_data_config

import paired
from gap_plugin import timm_test_pipeline


def with_opencv(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same steps, by MMPretrain's default library."""
    steps = []
    for step in pipeline:
        if step['type'] == 'LoadTimmImage':
            step = dict(type='LoadImageFromFile')
        steps.append(dict(step, backend='cv2') if 'backend' in step else step)
    return steps


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--networks', nargs='+', default=[
        'resnet50', 'dla34', 'convnext_base.fb_in22k_ft_in1k_384'])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--out', help='JSON file for the raw figures')
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    photos = dict(chelsea=data.chelsea(), coffee=data.coffee(),
                  astronaut=data.astronaut(), rocket=data.rocket())
    rows = []
    print(f'{"network":38}{"Pillow/OpenCV, time":>20}'
          f'{"max difference, of 255":>32}')
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f'{name}.jpg') for name in photos]
        for path, photo in zip(paths, photos.values(), strict=True):
            Image.fromarray(photo).save(path, quality=95)
        for name in args.networks:
            pillow = timm_test_pipeline(name)
            sides = dict(pillow=Compose(pillow),
                         opencv=Compose(with_opencv(pillow)))
            cfg = timm.get_pretrained_cfg(name).to_dict()
            theirs = create_transform(**dict(
                resolve_data_config(pretrained_cfg=cfg, use_test_size=True),
                normalize=False))

            def run(side: str, sides: dict = sides) -> list[torch.Tensor]:
                return [sides[side](dict(img_path=str(p)))['inputs']
                        for p in paths]

            row = paired.paired_ratio(lambda run=run: run('pillow'),
                                      lambda run=run: run('opencv'),
                                      args.rounds)
            expected = [theirs(Image.open(p)).int() for p in paths]
            for side in sides:
                row[f'{side}_difference'] = int(max(
                    (ours.flip(0).int() - timms).abs().max()
                    for ours, timms in zip(run(side), expected,
                                           strict=True)))
                row[f'{side}_mean_difference'] = float(np.mean([
                    (ours.flip(0).int() - timms).abs().float().mean()
                    for ours, timms in zip(run(side), expected,
                                           strict=True)]))
            rows.append(dict(network=name, **row))
            print(f'{name:38}{row["ratio"]:20.3f}'
                  f'   Pillow {row["pillow_difference"]}, OpenCV '
                  f'{row["opencv_difference"]} '
                  f'(mean {row["opencv_mean_difference"]:.2f})', flush=True)
    if args.out:
        paired.write(args.out, rows)


if __name__ == '__main__':
    main()
