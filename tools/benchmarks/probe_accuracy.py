"""Is a probe as right, untuned, as the best that others choose?

Features of each network are extracted once, on scikit-learn's digits and on a
folder of images with ``train`` and ``val``, at one image size. Then both are
split at random, six times, alike in the classes, and on each split are
trained: the probe by a config as ``new-config`` writes it; the same with
``--grid``; scikit-learn's logistic regression on standardised features, its C
chosen by cross-validation; the linear classifiers of DINOv2's evaluation (SGD
on the features as they are, 13 rates), the rate chosen likewise. Networks
named with ``--random`` have random weights; they take part in the ranking
alone, which is compared with that by logistic regression.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    StratifiedShuffleSplit,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from gap_plugin.config_writer import NewConfig, write_config
from gap_plugin.engine.building import build_classifier
from gap_plugin.features import FeatureStore, StoreWriter, extract
from gap_plugin.probing import DINOV2_RATES, probe

#: What a split trains on, of each data set.
SHARE = dict(digits=0.8, folder=2 / 3)


def config_of(network: str, weights: Path | None, args: argparse.Namespace,
              folder: Path) -> Config:
    """The config that ``new-config`` writes for the folder of images."""
    write_config(NewConfig(
        network, args.images, recipe='linear', img_size=args.size,
        checkpoint=weights, out=folder / 'config.py'))
    cfg = Config.fromfile(folder / 'config.py')
    init_default_scope('mmpretrain')
    return cfg


def extracted(network: str, weights: Path | None, data: str,
              args: argparse.Namespace
              ) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all images, from the cache if they are there."""
    kept = args.cache / f'{network}_{data}_{args.size}.npz'
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            cfg = config_of(network, weights, args, Path(folder))
            splits = ['train', 'val']
            if data == 'digits':
                splits = ['train']
                cfg.train_dataloader.dataset = dict(
                    type='Digits', split='all', pipeline=[])
                cfg.test_dataloader.dataset.pipeline = [
                    dict(type='TimmTestTransform', crop_pct=1.),
                    dict(type='PackInputs')]
            torch.manual_seed(0)  # of random weights
            model = build_classifier(cfg)
            stores = [extract(model, cfg, split, Path(folder) / split)
                      for split in splits]
            np.savez(kept, x=np.concatenate([s.features for s in stores]),
                     y=np.concatenate([s.labels for s in stores]))
    with np.load(kept) as found:
        return found['x'], found['y']
