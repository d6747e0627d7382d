"""Which networks go back to timm, and what timm has in the way of others.

The smallest network of every module, written by ``export_timm``, loaded by
timm and compared; once on its map, once with ``out_feature='pre_logits'``.
Norms, and the classifier, get random values: fresh ones change nothing, and
would hide what is wrong. A run that was stopped goes on.
"""

import argparse
import gc
import json
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from export_coverage import spoilt

import paired

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests'))


def measure(name: str, out_feature: str) -> dict:
    """Export one network."""
    from mmpretrain.registry import MODELS

    from gap_plugin.export import export_timm
    from networks import image_size

    torch.manual_seed(0)
    model = spoilt(MODELS.build(dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='TimmFeatureBackbone', model_name=name,
                      out_feature=out_feature),
        neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
        head=dict(type='LinearHead', num_classes=10))).eval())
    backbone = model.backbone  # on smaller images than their own, to save time
    backbone.data_source = replace(
        backbone.data_source, img_size=tuple(image_size(name)))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            found = export_timm(model, Path(folder) / 'network')
        except ValueError as error:
            return dict(refused=str(error))
        return dict(logits=found.network, how=found.how,
                    seconds=time.perf_counter() - start)


def main() -> None:
    """Export all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='to_timm.json',
                        help='JSON file of what was found, and is kept')
    parser.add_argument('--networks', nargs='+', help='all by default')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    from networks import SMALLEST
    out = Path(args.out)
    rows = json.loads(out.read_text(encoding='utf-8'))['rows'] if (
        out.exists()) else []
    rows = [row for row in rows if all(
        {'logits', 'refused'} & row[out_feature].keys()
        for out_feature in ('final_conv', 'pre_logits'))]
    known = {row['network'] for row in rows}
    for module, name in SMALLEST.items():
        if name in known or name not in (args.networks or [name]):
            continue
        rows.append(dict(module=module, network=name, **{
            out_feature: measure(name, out_feature)
            for out_feature in ('final_conv', 'pre_logits')}))
        paired.write(str(out), rows)
        print(rows[-1], flush=True)
        gc.collect()
    for out_feature in ('final_conv', 'pre_logits'):
        good = [row[out_feature] for row in rows
                if 'logits' in row[out_feature]]
        print(f'{out_feature}: {len(good)} of {len(rows)}, largest '
              f'difference {max(row["logits"] for row in good):.2g}')


if __name__ == '__main__':
    main()
