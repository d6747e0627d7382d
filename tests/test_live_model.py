"""A model that is in use: by threads, with wrong images, in a graph."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from errors import one_line
from gap_plugin import TimmFeatureBackbone, TimmFeatureClassifier
from gap_plugin.timm_network import run_for_shapes
from networks import full, images


def build(name, **kwargs):
    torch.manual_seed(0)
    return TimmFeatureBackbone(name, **kwargs).eval()


# --- errors ----------------------------------------------------------------


@pytest.mark.parametrize('name', ['test_vit', 'test_efficientnet'])
def test_eight_threads_are_answered_as_one(name):
    backbone = build(name, frozen_stages=1)
    good = [images(name, 1) + i for i in range(4)]
    # the last one is bad for the transformer alone
    bad = [torch.zeros(1, 3, 97, 0), torch.zeros(1, 2, 160, 160),
           torch.zeros(3, 160, 160), torch.zeros(1, 3, 100, 90)]

    def ask(x):
        with torch.no_grad():
            try:
                return backbone(x)[0]
            except ValueError as error:
                return str(error)

    expected = [ask(x) for x in good + bad]
    modes = [m.training for m in backbone.modules()]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, (good + bad) * 8))
    for answer, right in zip(answers, expected * 8, strict=True):
        if isinstance(right, str):
            assert answer == right
        else:
            assert torch.equal(answer, right)
    assert all(isinstance(e, str) for e in expected[len(good):-1])
    assert [m.training for m in backbone.modules()] == modes


def test_an_image_that_is_refused_leaves_the_network_alone(monkeypatch):
    backbone = build('test_vit')

    def touched(*_, **__):
        pytest.fail('the network is touched')

    monkeypatch.setattr(nn.Module, 'train', touched)
    monkeypatch.setattr(nn.Module, 'register_parameter', touched)
    monkeypatch.setattr(copy, 'deepcopy', touched)
    runs = []
    backbone.timm_model.patch_embed.register_forward_pre_hook(
        lambda *_: runs.append(1))
    with pytest.raises(ValueError, match='100 x 100'):
        backbone(torch.zeros(1, 3, 100, 100))
    assert len(runs) == 1


@pytest.mark.parametrize('name, size, part', [
    ('test_vit', (100, 90), 'should be divisible by patch size (16); its'),
    full('mvitv2_tiny', (225, 225), 'index 55 is out of bounds'),
    full('halonet_h1', (100, 100), 'AssertionError'),
    full('dla46x_c', (33, 65), 'The size of tensor a (17) must match'),
])
def test_a_size_that_is_not_taken_is_told_with_timms_words(name, size, part):
    backbone = build(name)
    with pytest.raises(ValueError) as info:
        backbone(torch.zeros(1, 3, *size))
    text = one_line(info)
    own = ' x '.join(map(str, backbone.image_size))
    assert f'{name!r} cannot take an image of {size[0]} x {size[1]}' in text
    assert part in text and f'its own size is {own}' in text
    assert not isinstance(info.value.__cause__, ValueError)


@pytest.mark.parametrize('size, error', [
    ((96, 96), RuntimeError("[enforce fail at alloc_cpu.cpp:127] "
                            "DefaultCPUAllocator: can't allocate memory: you "
                            'tried to allocate 64 bytes.')),
    ((96, 96), torch.cuda.OutOfMemoryError('CUDA out of memory.')),
    ((96, 96), RuntimeError('CUDA error: device-side assert triggered')),
    ((96, 96), OSError('of a hook')),
    ((160, 160), RuntimeError('anything')),
    ((160, 160), IndexError('anything')),
])
def test_an_error_that_is_not_of_the_size_passes_as_it_is(size, error):
    backbone = build('test_resnet')

    def fail(*_):
        raise error

    backbone.timm_model.layer4.register_forward_pre_hook(fail)
    with pytest.raises(type(error)) as info:
        backbone(torch.zeros(1, 3, *size))
    assert info.value is error and error.__cause__ is None
    error.__traceback__ = None  # it holds the network


def test_parts_that_are_given_are_not_run_to_find_a_width():
    """Another model may be using them; copies run."""
    touched = []

    class Part(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 7, 1)
            self.norm = nn.BatchNorm2d(7)
            self.__dict__['me'] = id(self)

        def train(self, mode=True):
            if id(self) == self.me:
                touched.append('train')
            return super().train(mode)

        def forward(self, x):
            if id(self) == self.me:
                touched.append('forward')
            return self.norm(self.conv(x))

    part = Part()
    part.eval()
    touched.clear()
    state = copy.deepcopy(part.state_dict())
    assert run_for_shapes(part, torch.empty(
        2, 3, 4, 4, device='meta')).shape == (2, 7, 4, 4)
    model = TimmFeatureClassifier(
        backbone=part, head=dict(type='LinearHead', num_classes=2))
    assert model.head.in_channels == 7 and not touched
    assert all(torch.equal(v, state[k]) for k, v in part.state_dict().items())
    assert not part.training


# --- graphs ----------------------------------------------------------------

#: Of each layout, and those that bare timm can be traced of.
TRACED = ('test_resnet', 'test_efficientnet', 'test_convnext', 'test_nfnet',
          'test_mambaout', 'deit_tiny_patch16_224', *map(full, (
              'levit_128s', 'swin_tiny_patch4_window7_224', 'coat_tiny',
              'xcit_nano_12_p8_224')))


@pytest.mark.parametrize('name', TRACED)
def test_torch_fx_traces_what_it_traces_of_timm(name):
    backbone = build(name)
    x = images(name)
    with torch.no_grad():
        (expected, ) = backbone(x)
        for model in (backbone, nn.Sequential(backbone)):
            # of a copy: some networks cache what they are given
            graph = symbolic_trace(copy.deepcopy(model))
            assert torch.equal(graph(x)[0], expected)


@pytest.mark.parametrize('name', ['test_resnet', full('test_vit'),
                                  full('efficientvim_m1')])
def test_the_forward_is_one_graph_without_a_break(name):
    backbone = build(name)
    x = images(name)
    with torch.no_grad():
        (expected, ) = backbone(x)
        compiled = torch.compile(backbone, backend='eager', fullgraph=True)
        assert torch.equal(compiled(x)[0], expected)
        batch = torch.export.Dim('batch', min=1, max=64)
        program = torch.export.export(
            backbone, (x, ), dynamic_shapes=dict(x={0: batch}))
        torch.testing.assert_close(program.module()(x[:1])[0], expected[:1],
                                   rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize('shape, part', [
    ((2, 2, 160, 160), '(2, 2, 160, 160); in_channels'),
    ((3, 160, 160), 'N, 3, H, W')])
def test_a_wrong_image_is_told_in_one_line_in_a_compiled_model_too(
        shape, part):
    model = nn.Sequential(build('test_resnet'))
    compiled = torch.compile(model, backend='eager')
    for call in (model, compiled):
        with pytest.raises(ValueError, match=re.escape(part)) as info:
            call(torch.zeros(shape))
        one_line(info)
    torch.compiler.reset()
