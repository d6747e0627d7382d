"""What an older timm lacks is said in one line, whichever is installed."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import ConvMixer, SwinTransformer

from gap_plugin import TimmFeatureBackbone
from gap_plugin.requirements import BOUNDS, TIMM_COMPLETE
from gap_plugin.timm_network import NetworkSpec, create
from networks import raw


def refused(*arguments, **kwargs):
    with pytest.raises(ValueError) as info:
        TimmFeatureBackbone(*arguments, **kwargs)
    text = str(info.value)
    assert '\n' not in text
    assert f'pip install "timm>={TIMM_COMPLETE}"' in text
    return text


def test_bounds_hold_the_version_that_is_complete():
    assert BOUNDS['timm'] == ('1.0.19', '1.1.0')
    assert TIMM_COMPLETE == '1.0.31'


def without(monkeypatch, part):
    """A network as an older timm has it."""
    made = timm.create_model

    def create_model(**kwargs):
        model = made(**kwargs)
        if part == 'feature_info':
            model.__dict__.pop(part, None)
        return model

    monkeypatch.setattr(timm, 'create_model', create_model)
    if hasattr(ConvMixer, part):
        monkeypatch.delattr(ConvMixer, part)


@pytest.mark.parametrize('options', ({}, dict(out_feature='pre_logits'),
                                     dict(out_indices=(0, ))))
def test_network_without_feature_info_names_the_timm_it_needs(
        options, monkeypatch):
    without(monkeypatch, 'feature_info')
    text = refused('convmixer_768_32', **options)
    assert 'ConvMixer has no feature_info' in text


def test_levels_without_intermediates_name_the_timm_they_need(monkeypatch):
    if not hasattr(raw('convmixer_768_32'), 'feature_info'):
        refused('convmixer_768_32', out_indices=(0, ))
        return
    without(monkeypatch, 'forward_intermediates')
    text = refused('convmixer_768_32', out_indices=(0, ))
    assert 'ConvMixer has no forward_intermediates' in text
    # its last map is there all the same
    assert TimmFeatureBackbone('convmixer_768_32').out_channels == (768, )


def test_weights_that_an_older_timm_misreads_name_the_timm_they_need(
        tmp_path, monkeypatch):
    monkeypatch.setattr(timm, '__version__', '1.0.19')
    path = str(tmp_path / 'weights.safetensors')
    model = raw('swin_tiny_patch4_window7_224')
    assert isinstance(model, SwinTransformer)
    wrong = {k: v[:1].contiguous() for k, v in model.state_dict().items()}
    save_file(wrong, path)
    text = refused('swin_tiny_patch4_window7_224', checkpoint_path=path)
    assert 'another shape' in text and 'here: 1.0.19' in text


def test_network_that_needs_numbers_is_built_on_the_cpu_to_look_at(
        monkeypatch):
    made = timm.create_model

    def create_model(**kwargs):
        torch.linspace(0, 1, 2)[1].item()  # fails on the meta device
        return made(**kwargs)

    monkeypatch.setattr(timm, 'create_model', create_model)
    bare = create.create_bare(NetworkSpec('test_resnet', img_size=None))
    assert {p.device.type for p in bare.parameters()} == {'cpu'}


def test_network_that_takes_one_number_gets_one(monkeypatch):
    made, sizes = timm.create_model, []

    def create_model(**kwargs):
        size = kwargs.pop('img_size')
        sizes.append(size)
        half = size // 2  # a TypeError of a pair
        return made(**kwargs, img_size=2 * half)

    monkeypatch.setattr(timm, 'create_model', create_model)
    backbone = TimmFeatureBackbone('test_vit', img_size=96)
    assert sizes[:2] == [(96, 96), 96] and backbone.image_size == (96, 96)
    with pytest.raises(TypeError):
        create.create_network(NetworkSpec('test_vit', img_size=(96, 64)))
