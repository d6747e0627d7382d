"""The networks that the contract suite runs on."""

from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from timm.models import get_pretrained_cfg

from gap_plugin.requirements import TIMM_COMPLETE

#: timm's model modules -> the smallest network of each (timm 1.0.31)
SMALLEST = {
    'beit': 'beit_base_patch16_224',
    'byoanet': 'halonet_h1',
    'byobnet': 'test_byobnet',
    'cait': 'cait_xxs24_224',
    'coat': 'coat_tiny',
    'convit': 'convit_tiny',
    'convmixer': 'convmixer_768_32',
    'convnext': 'test_convnext',
    'cpubone': 'cpubone_nano',
    'crossvit': 'crossvit_tiny_240',
    'csatv2': 'csatv2',
    'cspnet': 'cs3darknet_focus_s',
    'cspnext': 'cspnext_tiny',
    'davit': 'davit_tiny',
    'deepseek_vit': 'deepseek_vit_412m',
    'deit': 'deit_tiny_patch16_224',
    'densenet': 'densenet121',
    'dla': 'dla46x_c',
    'dpn': 'dpn48b',
    'edgenext': 'edgenext_xx_small',
    'efficientformer': 'efficientformer_l1',
    'efficientformer_v2': 'efficientformerv2_s0',
    'efficientnet': 'test_efficientnet',
    'efficientvim': 'efficientvim_m1',
    'efficientvit_mit': 'efficientvit_b0',
    'efficientvit_msra': 'efficientvit_m0',
    'eva': 'vit_tiny_patch16_dinov3_qkvb',
    'fasternet': 'fasternet_t0',
    'fastvit': 'fastvit_t8',
    'focalnet': 'focalnet_tiny_srf',
    'gcvit': 'gcvit_xxtiny',
    'gemma4_vit': 'gemma4_vit_167m',
    'ghostnet': 'ghostnet_050',
    'hardcorenas': 'hardcorenas_b',
    'hgnet': 'hgnetv2_b0',
    'hiera': 'hiera_tiny_224',
    'hieradet_sam2': 'sam2_hiera_tiny',
    'hrnet': 'hrnet_w18_small',
    'iformer': 'iformer_t',
    'inception_next': 'inception_next_atto',
    'inception_resnet_v2': 'inception_resnet_v2',
    'inception_v3': 'inception_v3',
    'inception_v4': 'inception_v4',
    'lcnetv2': 'lcnetv2_small',
    'levit': 'levit_128s',
    'lowformer': 'lowformer_b0',
    'mambaout': 'test_mambaout',
    'maxxvit': 'test_coatnet',
    'metaformer': 'poolformerv2_s12',
    'mlp_mixer': 'gmlp_ti16_224',
    'mobilenetv3': 'lcnet_035',
    'mobilenetv5': 'mobilenetv5_base',
    'mobilevit': 'mobilevit_xxs',
    'mvitv2': 'mvitv2_tiny',
    'naflexvit': 'naflexvit_base_patch16_parfac_gap',
    'nasnet': 'nasnetalarge',
    'nest': 'nest_tiny',
    'nextvit': 'nextvit_small',
    'nfnet': 'test_nfnet',
    'pit': 'pit_ti_224',
    'pnasnet': 'pnasnet5large',
    'pvt_v2': 'pvt_v2_b0',
    'qwen3_vit': 'qwen3_vit_88m',
    'rdnet': 'rdnet_tiny',
    'regnet': 'regnetx_002',
    'repghost': 'repghostnet_050',
    'repvit': 'repvit_m1',
    'res2net': 'res2next50',
    'resnest': 'resnest14d',
    'resnet': 'test_resnet',
    'resnetv2': 'resnetv2_18',
    'rexnet': 'rexnet_100',
    'selecsls': 'selecsls42',
    'senet': 'legacy_seresnet18',
    'sequencer': 'sequencer2d_s',
    'shvit': 'shvit_s1',
    'sknet': 'skresnet18',
    'starnet': 'starnet_s050',
    'swiftformer': 'swiftformer_xs',
    'swin_transformer': 'swin_tiny_patch4_window7_224',
    'swin_transformer_v2': 'swinv2_tiny_window8_256',
    'swin_transformer_v2_cr': 'swinv2_cr_tiny_224',
    'tiny_vit': 'tiny_vit_5m_224',
    'tnt': 'tnt_s_legacy_patch16_224',
    'tresnet': 'tresnet_m',
    'twins': 'twins_svt_small',
    'vgg': 'vgg11',
    'visformer': 'visformer_tiny',
    'vision_transformer': 'test_vit',
    'vision_transformer_hybrid': 'vit_tiny_r_s16_p8_224',
    'vision_transformer_relpos': 'test_vit_relpos',
    'vision_transformer_sam': 'samvit_base_patch16_224',
    'vitamin': 'vitamin_small_224',
    'volo': 'volo_d1_224',
    'vovnet': 'ese_vovnet19b_slim_dw',
    'xception': 'legacy_xception',
    'xception_aligned': 'xception41p',
    'xcit': 'xcit_nano_12_p8_224'
}

#: Networks that other tests ask for by name, beside :data:`SMALLEST`.
_OTHERS = {
    'test_coatnet', 'csatv2', 'vit_base_patch16_sapiens2',
    'vit_large_patch16_dinov3.sat493m'
}

#: What timm below :data:`TIMM_COMPLETE` lacks, measured with 1.0.19.
OLDER_TIMM = Version(timm.__version__) < Version(TIMM_COMPLETE)
_KNOWN = {*timm.list_models(), *timm.list_models(pretrained=True)}
ABSENT = {*SMALLEST.values(), *_OTHERS} - _KNOWN if OLDER_TIMM else set()
if OLDER_TIMM:
    SMALLEST = {module: name for module, name in SMALLEST.items()
                if name in _KNOWN}

#: Where a network is built to be looked at: an older timm reads numbers off
#: tensors, which have none on the meta device.
LOOK_AT = 'cpu' if OLDER_TIMM else 'meta'

#: Networks that do not say where their maps are there,
_WITHOUT_MAP = {
    'coat_tiny', 'convit_tiny', 'convmixer_768_32', 'crossvit_tiny_240',
    'visformer_tiny'
}
#: those that have a last map, but give no levels,
_WITHOUT_LEVELS = {
    'cs3darknet_focus_s', 'densenet121', 'dla46x_c', 'dpn48b',
    'hrnet_w18_small', 'inception_resnet_v2', 'inception_v3', 'nasnetalarge',
    'test_nfnet', 'pnasnet5large', 'selecsls42', 'legacy_seresnet18',
    'sequencer2d_s', 'vgg11', 'legacy_xception', 'xception41p'
}
#: the tests that ask for levels,
_OF_LEVELS = {
    'test_levels_are_maps_of_the_published_width_and_stride',
    'test_levels_equal_timms_features_only'
}
#: a network whose levels have another stride than timm says there,
_OTHER_STRIDE = {
    ('test_levels_are_maps_of_the_published_width_and_stride', 'pit_ti_224')
}
#: weights that are not read: a Swin without its classifier is taken for one
#: of old names, and timm itself reads another format than that of the file,
_UNREADABLE = {
    ('test_weights_for_another_size_are_resampled_as_timm_does', name)
    for name in ('swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224')
}
#: and what tests ask for inside.
_INSIDE = {
    'test_height_and_width_are_not_mixed_up': 'has no sapiens2',
    'test_networks_cover_all_that_timm_knows': 'knows other networks',
    'test_parts_that_fuse_levels_get_all_widths': 'gives no levels of hrnet',
    'test_what_two_parts_share_goes_from_both': 'gives no levels of CoaT',
}


def lacks(test: str, parameters: dict[str, Any]) -> str | None:
    """Why the timm that is installed cannot run a test, if it cannot."""
    if not OLDER_TIMM:
        return None
    this = f'timm {timm.__version__}'
    if test in _INSIDE:
        return f'{this} {_INSIDE[test]}'
    for name in parameters.values():
        if not isinstance(name, str):
            continue
        if name in ABSENT:
            return f'{this} has no {name}'
        if name in _WITHOUT_MAP:
            return f'{name} does not say where its maps are in {this}'
        if test in _OF_LEVELS and name in _WITHOUT_LEVELS:
            return f'{name} gives no levels in {this}'
        if (test, name) in _OTHER_STRIDE:
            return f'{this} says another stride of the levels of {name}'
        if (test, name) in _UNREADABLE:
            return f'{this} cannot read such weights of {name}'
    return None


#: Networks that are run on smaller images than their own, to save time. All
#: of timm is run at its own size on the meta device.
SMALLER_IMAGES = {
    'deepseek_vit_412m': 112,
    'gemma4_vit_167m': 96,
    'qwen3_vit_88m': 64,
    'sam2_hiera_tiny': 224,
    'nasnetalarge': 96,
    'pnasnet5large': 96,
    'csatv2': 128,
    'naflexvit_base_patch16_parfac_gap': 96,
    'inception_resnet_v2': 128,
    'inception_v4': 128,
    'legacy_xception': 96,
    'xception41p': 96,
    'convmixer_768_32': 56,
    'mobilenetv5_base': 128,
    'vgg11': 64,
    'hrnet_w18_small': 64,
    'tresnet_m': 64,
    'samvit_base_patch16_224': 112
}

#: Networks with unpadded convolutions, which lose positions at the border:
#: their maps are up to three positions smaller than size / stride.
UNPADDED = ('inception_resnet_v2', 'inception_v3', 'inception_v4',
            'legacy_xception', 'nasnetalarge', 'pit_ti_224', 'pnasnet5large')

#: Tiny networks of different layouts, for what need not be run on all.
TINY = ('test_resnet', 'test_efficientnet', 'test_nfnet', 'test_convnext',
        'test_vit', 'test_vit2', 'test_mambaout', 'test_coatnet')
TINY = tuple(name for name in TINY if name not in ABSENT)


#: One of each layout that timm has: NCHW, with and without a final_conv,
#: NHWC, tokens, several tensors.
LAYOUTS = ('test_resnet', 'test_nfnet', 'test_mambaout', 'test_vit',
           'efficientvim_m1')


def full(*values: Any) -> Any:
    """Parameters of a test that is not in the default level."""
    return pytest.param(*values, marks=pytest.mark.full)


def sweep(names: Iterable[str], few: Iterable[str] = LAYOUTS) -> list:
    """Names as parameters: a few, and the rest at the full level."""
    marks = pytest.mark.full, pytest.mark.sweep
    return [name if name in few else pytest.param(name, marks=marks)
            for name in names]


def image_size(name: str) -> tuple[int, int]:
    """A size that a network takes: its own, or a smaller one."""
    size = SMALLER_IMAGES.get(name)
    return (size, size) if size else get_pretrained_cfg(name).input_size[1:]


def images(name: str, count: int = 2) -> torch.Tensor:
    """Random images for a network."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *image_size(name), generator=generator)


def raw(name: str, seed: int = 0, **kwargs) -> torch.nn.Module:
    """The network as timm builds it, without a classifier, in eval mode."""
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0, **kwargs).eval()


def spoilt(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and scales as different as after training, in place.

    Of a network as it is made, many add next to nothing: a map of theirs is
    the same everywhere.
    """
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if not values.is_floating_point() or values.numel() < 2 or (
                values.detach().std() > 0):
            continue  # drawn by chance already
        if name.endswith(('bias', 'running_mean')):
            torch.nn.init.normal_(values, std=.1)
        else:
            torch.nn.init.uniform_(values, .5, 1.)
    return model
