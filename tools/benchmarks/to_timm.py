"""Which networks go back to timm, and what timm has in the way of others.

The smallest network of every module, written by ``export_timm``, loaded by
timm and compared; once on its map, once with ``out_feature='pre_logits'``.
Norms, and the classifier, get random values: fresh ones change nothing, and
would hide what is wrong. A run that was stopped goes on.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from export_coverage import of_each_module, spoilt

FEATURES = ('final_conv', 'pre_logits')


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
    """Export all of them, on both maps."""
    rows = of_each_module(
        __doc__, 'to_timm.json',
        lambda name: {kind: measure(name, kind) for kind in FEATURES},
        lambda row: all({'logits', 'refused'} & row[kind].keys()
                        for kind in FEATURES))
    for out_feature in FEATURES:
        good = [row[out_feature] for row in rows
                if 'logits' in row[out_feature]]
        print(f'{out_feature}: {len(good)} of {len(rows)}, largest '
              f'difference {max(row["logits"] for row in good):.2g}')


if __name__ == '__main__':
    main()
