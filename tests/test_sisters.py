"""Our backbone in MMSegmentation and MMDetection, where they are installed.

Both build backbones from MMPretrain's registry. Their releases import
``mmcv.ops``, which has to be compiled, for MMDetection on every host and for
MMSegmentation on the upstream one (README).
"""

import importlib
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData

pytestmark = pytest.mark.full

# another size than the network's own, and other ones afterwards
SWIN = dict(timm_kwargs=dict(strict_img_size=False))
NETWORKS = {
    'resnet18': (64, 128, 256, 512),
    'swin_tiny_patch4_window7_224': (96, 192, 384, 768),
}


def toolbox(name):
    """Import a sister toolbox, or skip for one of three known reasons."""
    if find_spec(name) is None:
        pytest.skip(f'{name} is not installed')
    try:
        importlib.import_module(f'{name}.models')
    except ModuleNotFoundError as error:
        if error.name != 'mmcv._ext':
            raise
        pytest.skip(f'{name} needs a compiled MMCV')
    except AssertionError as error:
        if 'MMCV==' not in str(error):
            raise
        pytest.skip(f'{name} refuses this MMCV: {error}')
    init_default_scope(name)


def backbone(name):
    return dict(type='mmpretrain.TimmFeatureBackbone', model_name=name,
                out_indices=(0, 1, 2, 3) if 'swin' in name else (1, 2, 3, 4),
                **(SWIN if 'swin' in name else {}))


def step_and_predict(model, batch):
    """One training step, in which everything trains, and a prediction."""
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    model.train()
    losses = model.train_step(batch, optim)
    assert torch.isfinite(losses['loss'])
    return model.eval().test_step(batch)


def config(package, name):
    """A model of the toolbox's own base configs, on our backbone."""
    root = importlib.import_module(package).__path__[0]
    return Config.fromfile(
        f'{root}/.mim/configs/_base_/models/{name}').model


def plain_norms(part, norm):
    """The base configs synchronise, which one process cannot."""
    for key, value in part.items():
        if key == 'norm_cfg':
            part[key] = dict(type=norm, requires_grad=True)
        elif isinstance(value, dict):
            plain_norms(value, norm)


@pytest.mark.parametrize('neck', ['UPerHead', 'FPN'])
@pytest.mark.parametrize('name', NETWORKS)
def test_pixels_are_segmented(name, neck):
    toolbox('mmseg')
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    cfg = config('mmseg', 'upernet_r50.py' if neck == 'UPerHead' else
                 'fpn_r50.py')
    cfg.pretrained = None
    cfg.backbone = backbone(name)
    plain_norms(cfg, 'BN')
    widths = list(NETWORKS[name])
    if neck == 'UPerHead':
        cfg.decode_head.update(in_channels=widths, channels=32)
        cfg.auxiliary_head.update(in_channels=widths[2], channels=32)
    else:
        cfg.neck.in_channels = widths
    cfg.data_preprocessor.size = (96, 128)
    model = MODELS.build(cfg)
    model.init_weights()
    samples = [
        SegDataSample(
            metainfo=dict(img_shape=(96, 128), ori_shape=(96, 128)),
            gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, 96, 128))))
        for _ in range(2)
    ]
    batch = dict(inputs=[torch.randint(0, 256, (3, 96, 128)).byte()
                         for _ in range(2)], data_samples=samples)
    for result in step_and_predict(model, batch):
        assert result.pred_sem_seg.data.shape == (1, 96, 128)


@pytest.mark.parametrize('kind', ['retinanet_r50_fpn.py',
                                  'faster-rcnn_r50_fpn.py'])
@pytest.mark.parametrize('name', NETWORKS)
def test_boxes_are_detected(name, kind):
    toolbox('mmdet')
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    cfg = config('mmdet', kind)
    cfg.backbone = backbone(name)
    cfg.neck.in_channels = list(NETWORKS[name])
    model = MODELS.build(cfg)
    model.init_weights()
    for height, width in ((128, 160), (96, 128)):
        samples = []
        for _ in range(2):
            sample = DetDataSample(metainfo=dict(
                img_shape=(height, width), ori_shape=(height, width),
                scale_factor=(1., 1.)))
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor([[10., 10., 60., 70.]]),
                labels=torch.tensor([3]))
            samples.append(sample)
        batch = dict(inputs=[torch.randint(0, 256, (3, height, width)).byte()
                             for _ in range(2)], data_samples=samples)
        for result in step_and_predict(model, batch):
            assert result.pred_instances.bboxes.shape[1] == 4
