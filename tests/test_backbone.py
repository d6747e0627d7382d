"""``TimmFeatureBackbone``: outputs, freezing, weights, errors."""

import copy
import os
import re
import time

import numpy as np
import pytest
import timm
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, save_checkpoint
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from safetensors.torch import save_file
from torch import nn

from errors import Bomb, one_line
from gap_plugin import TimmFeatureBackbone
from gap_plugin.models.norm_repair import NormConversions
from gap_plugin.timm_network import layer_depths
from gap_plugin.timm_network.trace import Trace
from networks import LOOK_AT, TINY, full, images, raw


def build(name='test_resnet', seed=0, **kwargs):
    torch.manual_seed(seed)
    return TimmFeatureBackbone(name, **kwargs)


def classifier(backbone, **kwargs):
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=[
                dict(type='GAPNeck'),
                dict(type='BNNeck', in_channels=backbone.out_channels[-1])
            ],
            head=dict(
                type='LinearHead',
                num_classes=3,
                in_channels=backbone.out_channels[-1]),
            **kwargs))


def samples(count=2):
    return [DataSample().set_gt_label(i % 3) for i in range(count)]


# --- outputs ---------------------------------------------------------------


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', [
    'test_nfnet', 'nf_resnet50', *map(full, (
        'eca_nfnet_l0', 'eca_nfnet_l1', 'nfnet_l0', 'dm_nfnet_f0'))
])
def test_final_conv_equals_stem_stages_final_conv_exactly(name, training):
    backbone = build(name).train(training)
    model = raw(name).train(training)
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)  # stochastic depth
    (ours, ) = backbone(x)
    torch.manual_seed(1)
    theirs = model.final_conv(model.stages(model.stem(x)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_forward_features_of_an_nfnet_is_after_the_activation():
    (ours, ) = build('test_nfnet', out_feature='forward_features').eval()(
        images('test_nfnet'))
    theirs = raw('test_nfnet').forward_features(images('test_nfnet'))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (before, ) = build('test_nfnet').eval()(images('test_nfnet'))
    assert not torch.allclose(ours, before)


def test_eca_nfnet_l1_gives_3072_channels_at_stride_32():
    backbone = build('eca_nfnet_l1').eval()
    with torch.no_grad():
        (y, ) = backbone(torch.zeros(1, 3, 416, 416))
    assert y.shape == (1, 3072, 13, 13)
    assert backbone.out_channels == (3072, )
    assert backbone.out_strides == (32, )


@pytest.mark.parametrize('name', TINY)
def test_gradients_equal_those_of_the_bare_network(name):
    backbone = build(name, out_feature='forward_features').eval()
    model = raw(name)
    x = images(name)
    backbone(x)[0].square().sum().backward()
    y = model.forward_features(x)
    if getattr(model, 'num_prefix_tokens', 0):
        y = y[:, model.num_prefix_tokens:]
    y.square().sum().backward()
    theirs = dict(model.named_parameters())
    for key, parameter in backbone.timm_model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[key].grad)


@pytest.mark.parametrize('name, kwargs', [
    ('test_vit', dict(timm_kwargs=dict(dynamic_img_size=True))),
    ('test_vit', dict(img_size=(96, 160))),  # by an argument
    ('volo_d1_224', dict(img_size=(96, 160))),
    ('swinv2_cr_tiny_224', dict(img_size=(96, 160))),
    ('efficientvit_m0', dict(img_size=192)),  # by set_input_size
    ('test_convnext', dict(img_size=(96, 160))),  # takes every size
    ('test_convnext', {}),
])
def test_other_image_sizes_give_maps_of_their_proportions(name, kwargs):
    backbone = build(name, **kwargs).eval()
    (stride, ) = backbone.out_strides
    size = (192, 192) if kwargs.get('img_size') == 192 else (96, 160)
    (y, ) = backbone(torch.zeros(1, 3, *size))
    assert y.shape[2:] == (size[0] // stride, size[1] // stride)
    if 'img_size' in kwargs:
        assert backbone.image_size == size


@pytest.mark.parametrize('name', [
    'test_vit', 'vit_tiny_patch16_224', full('swin_tiny_patch4_window7_224'),
    full('beit_base_patch16_224')])
def test_weights_for_another_size_are_resampled_as_timm_does(name, tmp_path):
    model = raw(name, seed=1)
    path = str(tmp_path / 'weights.safetensors')
    save_file({k: v.contiguous() for k, v in model.state_dict().items()},
              path)
    backbone = build(name, img_size=96, checkpoint_path=path,
                     out_feature='forward_features').eval()
    theirs = timm.create_model(
        name, num_classes=0, img_size=96, pretrained=True,
        pretrained_cfg_overlay=dict(file=path, source='')).eval()
    x = torch.randn(1, 3, 96, 96)
    for key, value in backbone.timm_model.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key])
    assert backbone(x)[0].shape[2:] == (96 // backbone.out_strides[0], ) * 2


@pytest.mark.parametrize('name, size, own, part', [
    ('hiera_tiny_224', 100, '224 x 224', 'invalid for input of size'),  # run
    ('nest_tiny', (96, 64), '224 x 224', 'square'),  # built
    full('csatv2', 30, '512 x 512', 'invalid for input of size'),
])
def test_size_that_a_network_cannot_be_built_for_is_refused(
        name, size, own, part):
    with pytest.raises(ValueError) as info:
        build(name, img_size=size)
    text = one_line(info)
    assert name in text and f'its own size is {own}' in text
    assert part in text and str(info.value.__cause__).startswith(
        re.search(r'\d: (.*); its own', text)[1])


def test_gray_images_are_taken_with_one_channel():
    backbone = build(in_channels=1)
    assert backbone(torch.zeros(2, 1, 64, 64))[0].shape[1] == (
        backbone.out_channels[0])


def test_building_leaves_the_random_state_as_timm_leaves_it():
    build('test_nfnet')
    after_ours = torch.rand(1)
    raw('test_nfnet')
    assert torch.equal(after_ours, torch.rand(1))


def test_train_and_eval_return_the_module():
    backbone = build()
    assert backbone.train() is backbone and backbone.eval() is backbone


def test_no_module_keeps_a_number_of_classes():
    for name in TINY:
        assert not [
            m for m in build(name).modules() if hasattr(m, 'num_classes')
        ]


@pytest.mark.parametrize('name', ['test_resnet', 'crossvit_tiny_240'])
def test_deepcopy_computes_the_same(name):
    backbone = build(name).eval()
    twin = copy.deepcopy(backbone)
    torch.testing.assert_close(
        twin(images(name))[0], backbone(images(name))[0], rtol=0, atol=0)


def test_networks_with_a_common_structure_keep_weights_of_their_own():
    a, b = build(seed=0).eval(), build(seed=1).eval()
    x = images('test_resnet')
    assert not torch.allclose(a(x)[0], b(x)[0])


# --- freezing --------------------------------------------------------------


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit',
                                  'test_efficientnet', full('rdnet_tiny')])
@pytest.mark.parametrize('frozen', [0, 2, 'all'])
def test_frozen_parts_survive_real_steps(name, frozen):
    model = classifier(build(name, frozen_stages=frozen))
    for _ in range(3):
        model.train()
    fixed = {
        n for n, p in model.backbone.named_parameters()
        if not p.requires_grad
    }
    assert fixed
    before = state(model.backbone)
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(
                type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)))
    for _ in range(2):
        losses = model(images(name), samples(), mode='loss')
        wrapper.update_params(losses['loss'])
        model.train()
    after = model.backbone.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert not moved & fixed
    assert fixed == {
        n for n, p in model.backbone.named_parameters()
        if not p.requires_grad
    }
    if frozen == 'all':
        assert not moved
    else:
        assert moved  # the rest learns, and its statistics run
        fixed_modules = {n.rpartition('.')[0] for n in fixed}
        assert not {
            k for k in moved if k.rpartition('.')[0] in fixed_modules
        }


def test_frozen_parts_stay_frozen_under_synchronised_norms():
    backbone = convert_sync_batchnorm(
        build('resnet18', frozen_stages=2), 'torch').train()
    norms = {n: m for n, m in backbone.timm_model.named_modules()
             if isinstance(m, nn.SyncBatchNorm)}
    frozen = {n for n in norms if n.startswith(('bn1', 'layer1', 'layer2'))}
    assert frozen and {n for n, m in norms.items() if not m.training} == frozen


def test_frozen_prefix_runs_without_autograd():
    backbone = build(frozen_stages=2).train()
    seen = []
    backbone.timm_model.layer2.register_forward_hook(
        lambda *args: seen.append(args[2].requires_grad))
    backbone.timm_model.layer3.register_forward_hook(
        lambda *args: seen.append(args[2].requires_grad))
    assert backbone(images('test_resnet'))[0].requires_grad
    assert seen == [False, True]


def test_frozen_all_gives_no_graph_even_for_an_image_that_wants_one():
    backbone = build(frozen_stages='all').train()
    x = images('test_resnet').requires_grad_()
    assert not backbone(x)[0].requires_grad


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet'])
def test_norm_eval_keeps_statistics_but_trains_weights(name):
    backbone = build(name, norm_eval=True).train()
    before = state(backbone)
    backbone(images(name))[0].sum().backward()
    norms = [m for m in backbone.modules()
             if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(m.training for m in norms)
    assert all(m.weight.grad is not None for m in norms)
    after = backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_nfnet'])
def test_checkpointing_gives_the_same_gradients(name):
    x = images(name)
    grads = []
    for with_cp in (False, True):
        backbone = build(name, with_cp=with_cp)
        torch.manual_seed(1)
        backbone(x)[0].square().sum().backward()
        grads.append({n: p.grad for n, p in backbone.named_parameters()})
    for key in grads[0]:
        torch.testing.assert_close(grads[1][key], grads[0][key])


def test_layer_wise_decay_constructor_takes_the_depths():
    import mmpretrain.engine  # noqa: F401, registers the constructor
    init_default_scope('mmpretrain')
    model = classifier(build('test_vit'))
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5)))
    rates = {
        g['param_name']: g['lr'] for g in wrapper.optimizer.param_groups
    }
    # stem, 6 blocks, head: each layer has half the rate of the next
    assert rates['head.fc.weight'] == 1.0
    assert rates['backbone.timm_model.blocks.5.attn.qkv.weight'] == 0.5
    assert rates['backbone.timm_model.blocks.0.attn.qkv.weight'] == 0.5**6
    assert rates['backbone.timm_model.patch_embed.proj.weight'] == 0.5**7


# --- weights ---------------------------------------------------------------


def reference(name='test_vit', seed=5):
    torch.manual_seed(seed)
    return timm.create_model(name).eval()


def write(model, path, kind):
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    if kind == 'no_classifier':
        weights = {k: v for k, v in weights.items()
                   if not k.startswith(('head.', 'fc.', 'classifier.'))}
    if path.endswith('.safetensors'):
        save_file(weights, path)
    elif kind == 'timm_training':
        torch.save(dict(state_dict=weights, epoch=3, arch='x'), path)
    elif kind == 'ddp':
        torch.save({f'module.{k}': v for k, v in weights.items()}, path)
    else:
        torch.save(weights, path)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.bin'])
@pytest.mark.parametrize('kind', ['plain', 'no_classifier'])
@pytest.mark.parametrize('name', ['test_vit', 'test_nfnet'])
def test_checkpoint_path_loads_every_format(tmp_path, suffix, kind, name):
    model = reference(name)
    path = str(tmp_path / f'weights{suffix}')
    write(model, path, kind)
    check_loaded(build(name, checkpoint_path=path), model, name)


@pytest.mark.parametrize('kind', ['timm_training', 'ddp'])
def test_checkpoint_path_loads_training_checkpoints(tmp_path, kind):
    model, path = reference(), str(tmp_path / 'weights.pth')
    write(model, path, kind)
    check_loaded(build('test_vit', checkpoint_path=path), model)


def check_loaded(backbone, model, name='test_vit'):
    theirs = model.state_dict()
    ours = backbone.timm_model.state_dict()
    assert ours and all(torch.equal(v, theirs[k]) for k, v in ours.items())
    cfg = timm.get_pretrained_cfg(name).to_dict()
    assert 'state_dict' not in backbone.pretrained_cfg
    assert backbone.pretrained_cfg['mean'] == cfg['mean']
    backbone.init_weights()
    assert all(torch.equal(v, theirs[k]) for k, v in
               backbone.timm_model.state_dict().items())


def test_checkpoint_path_loads_npz(tmp_path):
    # the layout of the original JAX vision transformers
    model = reference('vit_tiny_patch16_224')
    state, arrays = model.state_dict(), {}
    heads, width = 3, 192

    def put(key, value):
        arrays[key] = value.numpy()

    put('embedding/kernel',
        state['patch_embed.proj.weight'].permute(2, 3, 1, 0))
    put('embedding/bias', state['patch_embed.proj.bias'])
    put('cls', state['cls_token'])
    put('Transformer/posembed_input/pos_embedding', state['pos_embed'])
    put('Transformer/encoder_norm/scale', state['norm.weight'])
    put('Transformer/encoder_norm/bias', state['norm.bias'])
    for i in range(12):
        block, to = f'blocks.{i}', f'Transformer/encoderblock_{i}'
        for n, norm in (('0', 'norm1'), ('2', 'norm2')):
            put(f'{to}/LayerNorm_{n}/scale', state[f'{block}.{norm}.weight'])
            put(f'{to}/LayerNorm_{n}/bias', state[f'{block}.{norm}.bias'])
        attention = f'{to}/MultiHeadDotProductAttention_1'
        parts = zip(('query', 'key', 'value'),
                    state[f'{block}.attn.qkv.weight'].chunk(3),
                    state[f'{block}.attn.qkv.bias'].chunk(3), strict=True)
        for part, weight, bias in parts:
            put(f'{attention}/{part}/kernel',
                weight.T.reshape(width, heads, width // heads))
            put(f'{attention}/{part}/bias',
                bias.reshape(heads, width // heads))
        put(f'{attention}/out/kernel',
            state[f'{block}.attn.proj.weight'].T.reshape(
                heads, width // heads, width))
        put(f'{attention}/out/bias', state[f'{block}.attn.proj.bias'])
        for n, fc in (('0', 'fc1'), ('1', 'fc2')):
            dense = f'{to}/MlpBlock_3/Dense_{n}'
            put(f'{dense}/kernel', state[f'{block}.mlp.{fc}.weight'].T)
            put(f'{dense}/bias', state[f'{block}.mlp.{fc}.bias'])
    path = str(tmp_path / 'weights.npz')
    np.savez(path, **arrays)
    check_loaded(
        build('vit_tiny_patch16_224', checkpoint_path=path), model,
        'vit_tiny_patch16_224')


def test_stem_weights_are_adapted_to_other_channel_counts(tmp_path):
    model, path = reference('test_resnet'), str(tmp_path / 'w.safetensors')
    write(model, path, 'plain')
    backbone = build(checkpoint_path=path, in_channels=1)
    torch.testing.assert_close(
        backbone.timm_model.conv1[0].weight,
        model.conv1[0].weight.sum(1, keepdim=True))


def test_checkpoint_of_an_mmpretrain_classifier_loads(tmp_path):
    source = classifier(build(seed=5))
    path = str(tmp_path / 'epoch_1.pth')
    torch.save(dict(meta={}, state_dict=source.state_dict()), path)
    backbone = build(checkpoint_path=path)
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[key])


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext',
                                  'mobilenetv3_small_050'])
def test_checkpoint_of_timm_backbone_loads_unchanged(tmp_path, name, caplog):
    stock = MODELS.build(dict(type='TIMMBackbone', model_name=name))
    path = str(tmp_path / 'stock.pth')
    save_checkpoint(dict(state_dict=stock.state_dict()), path)
    ours = build(name, seed=5)
    load_checkpoint(ours, path, map_location='cpu', strict=True)
    by_path = build(name, seed=6, checkpoint_path=path)
    theirs = stock.state_dict()
    for backbone in (ours, by_path):
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, theirs[key])


def test_own_checkpoint_lacks_what_was_taken_out_and_loads(tmp_path):
    source = build('mobilenetv3_small_050', seed=5)
    assert not [k for k in source.state_dict() if 'conv_head' in k]
    path = str(tmp_path / 'own.pth')
    torch.save(source.state_dict(), path)
    twin = build('mobilenetv3_small_050', checkpoint_path=path)
    for key, value in source.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key])


def test_init_cfg_pretrained_loads(tmp_path):
    source = build(seed=5)
    path = str(tmp_path / 'own.pth')
    torch.save(source.state_dict(), path)
    backbone = build(init_cfg=dict(type='Pretrained', checkpoint=path))
    backbone.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(value, backbone.state_dict()[key])


@pytest.mark.parametrize('way', ['checkpoint_path', 'load_state_dict'])
def test_init_cfg_of_the_classifier_does_not_undo_a_load(tmp_path, way):
    source = build(seed=5)
    path = str(tmp_path / 'own.pth')
    torch.save(source.state_dict(), path)
    init_cfg = [dict(type='Kaiming', layer='Conv2d'),
                dict(type='Constant', layer='BatchNorm2d', val=7)]
    if way == 'checkpoint_path':
        model = classifier(build(checkpoint_path=path), init_cfg=init_cfg)
    else:
        model = classifier(build(), init_cfg=init_cfg)
        model.backbone.load_state_dict(torch.load(path))
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[key])


def test_init_cfg_of_the_classifier_reaches_a_fresh_backbone():
    model = classifier(
        build(), init_cfg=dict(type='Constant', layer='Conv2d', val=7))
    model.init_weights()
    assert (model.backbone.timm_model.conv1[0].weight == 7).all()


def test_init_weights_does_not_draw_timms_weights_again():
    backbone = build('test_vit')
    before = state(backbone)
    backbone.init_weights()
    assert all(torch.equal(v, before[k])
               for k, v in backbone.state_dict().items())


# --- errors ----------------------------------------------------------------


@pytest.mark.parametrize('kwargs, error, parts', [
    (dict(model_name='resnet5o'), ValueError, ['resnet5o', 'resnet50']),
    (dict(model_name='resnet18.nope'), ValueError, ['nope', 'a1_in1k']),
    (dict(model_name='timm/resnet18'), ValueError, ['hf-hub:timm/resnet18']),
    (dict(model_name=3), TypeError, ['3', 'list_models']),
    (dict(out_indices=(0, 9)), ValueError, ['-5 to 4', 'layer4']),
    (dict(out_indices=(2, 1)), ValueError, ['must rise']),
    (dict(out_indices=()), ValueError, ['-5 to 4']),
    (dict(out_feature='last'), ValueError, ['last', 'pre_logits']),
    (dict(out_feature='pre_logits', out_indices=(1, )), ValueError,
     ['one of the two']),
    (dict(frozen_stages=5), ValueError, ['5', '4 = layer4', "'all'"]),
    (dict(frozen_stages='most'), ValueError, ["'most'", "'all'"]),
    (dict(in_channels=0), ValueError, ['positive']),
    (dict(pretrained='a.pth'), TypeError, ['checkpoint_path']),
    (dict(pretrained=True, checkpoint_path='a.pth'), ValueError,
     ['exclude']),
    (dict(timm_kwargs=dict(in_chans=1)), ValueError,
     ['in_chans', 'in_channels']),
    (dict(timm_kwargs=dict(num_classes=5)), ValueError, ['num_classes']),
    (dict(timm_kwargs='a'), TypeError, ["'a'", 'dict']),
    (dict(out_indices=True), ValueError, ['-5 to 4']),
    (dict(model_name='test_vit', timm_kwargs=dict(patch_size='a')),
     ValueError, ['patch_size', 'test_vit']),
    (dict(timm_kwargs=dict(img_size=96)), ValueError, ['use img_size']),
    (dict(img_size='a'), ValueError, ['img_size', "'a'"]),
    (dict(img_size=(96, 0)), ValueError, ['img_size', '(96, 0)']),
    (dict(model_name='vit_tiny_patch16_224',
          timm_kwargs=dict(patch_drop_rate=0.5)), ValueError,
     ['patch_drop_rate', 'pre_logits']),
    (dict(timm_kwargs=dict(dept=5)), ValueError, ['dept', 'test_resnet']),
    (dict(checkpoint_path='none.pth'), FileNotFoundError, ['none.pth']),
])
def test_wrong_argument_is_named_in_one_line(kwargs, error, parts):
    with pytest.raises(error) as info:
        build(**{'name': 'test_resnet', **{
            ('name' if k == 'model_name' else k): v
            for k, v in kwargs.items()
        }})
    text = one_line(info)
    for part in parts:
        assert part in text


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.npz'])
def test_truncated_checkpoint_is_named(tmp_path, suffix):
    path = str(tmp_path / f'cut{suffix}')
    if suffix == '.npz':
        np.savez(path, a=np.zeros(4000))
    else:
        write(reference(), path, 'plain')
    os.truncate(path, os.path.getsize(path) * 2 // 3)
    with pytest.raises(ValueError, match='truncated') as info:
        build('test_vit', checkpoint_path=path)
    assert path in one_line(info)


def test_checkpoint_of_another_kind_is_named(tmp_path):
    path = tmp_path / 'weights.onnx'
    path.write_bytes(b'x')
    with pytest.raises(ValueError, match=re.escape("'.onnx'")):
        build(checkpoint_path=str(path))


@pytest.mark.parametrize('source, target', [
    ('test_vit', 'test_resnet'),  # nothing fits
    ('resnet26', 'resnet14t'),  # much fits
    ('resnet50', 'resnet26'),  # all that is needed is there, and more
    ('resnet26', 'resnet50'),  # all that is there fits
    ('test_vit3', 'test_vit'),  # extra layers, identities in the other
])
def test_checkpoint_of_another_network_is_refused(tmp_path, source, target):
    path = str(tmp_path / 'weights.safetensors')
    write(reference(source), path, 'plain')
    with pytest.raises(ValueError, match='does not fit') as info:
        build(target, checkpoint_path=path)
    text = one_line(info)
    assert path in text and target in text
    assert re.search(r'\d+ weights', text)


@pytest.mark.parametrize('content', [[torch.zeros(2)], torch.zeros(2), {}])
def test_checkpoint_without_named_tensors_is_named(tmp_path, content):
    path = str(tmp_path / 'odd.pth')
    torch.save(content, path)
    with pytest.raises(ValueError, match='holds no tensors') as info:
        build(checkpoint_path=path)
    assert path in one_line(info)


def test_former_names_of_networks_take_weights(tmp_path):
    path = str(tmp_path / 'w.safetensors')
    write(reference('resnet18'), path, 'plain')
    with pytest.warns(UserWarning, match='deprecated'):
        backbone = build('gluon_resnet18_v1b', checkpoint_path=path)
    theirs = reference('resnet18').state_dict()
    assert torch.equal(backbone.timm_model.conv1.weight,
                       theirs['conv1.weight'])


def test_loading_the_head_alone_leaves_the_backbone_to_its_init_cfg():
    model = classifier(build(), init_cfg=dict(
        type='Constant', layer='Conv2d', val=7))
    model.load_state_dict(model.head.state_dict(prefix='head.'), strict=False)
    model.init_weights()
    assert (model.backbone.timm_model.conv1[0].weight == 7).all()


def test_pickle_with_code_is_refused_and_not_run(tmp_path):
    path, mark = str(tmp_path / 'bomb.pth'), tmp_path / 'mark'
    torch.save(dict(state_dict=dict(a=Bomb(mark))), path)
    with pytest.raises(ValueError, match='carries pickled code') as info:
        build(checkpoint_path=path)
    one_line(info)
    assert not mark.exists()


def test_pretrained_without_network_fails_fast_and_says_what_to_do(
        monkeypatch):
    # without a second try, ahead of which it would wait
    monkeypatch.setattr(time, 'sleep', lambda _: pytest.fail('it waits'))
    with pytest.raises(ConnectionError, match='checkpoint_path') as info:
        build('resnet18', pretrained=True)
    assert 'resnet18' in one_line(info) and 'cache' in str(info.value)


def test_pretrained_without_weights_at_timm_is_named():
    name = next(n for n in timm.list_models()
                if not timm.is_model_pretrained(n))
    with pytest.raises(ValueError, match=f'no weights for .{name}'):
        build(name, pretrained=True)


@pytest.mark.parametrize('shape, part', [
    ((2, 3, 64), 'N, 3, H, W'),
    ((2, 1, 64, 64), 'in_channels'),
    ((2, 3, 0, 64), '0 x 64'),
])
def test_wrong_input_is_named(shape, part):
    with pytest.raises(ValueError, match=re.escape(part)) as info:
        build()(torch.zeros(shape))
    assert 'test_resnet' in one_line(info)


def test_size_that_a_transformer_cannot_take_is_named():
    backbone = build('swin_tiny_patch4_window7_224')
    with pytest.raises(ValueError, match='100 x 100') as info:
        backbone(torch.zeros(1, 3, 100, 100))
    assert '224 x 224' in one_line(info) and 'img_size' in str(info.value)


def as_trained(backbone):
    """Norms as different as after training."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, .5, 2.)
            torch.nn.init.normal_(module.running_mean, std=.1)
            torch.nn.init.uniform_(module.weight, .5, 1.)
            torch.nn.init.normal_(module.bias, std=.1)
    return backbone.eval()


def sync(model):
    return convert_sync_batchnorm(model, 'torch')


def sync_and_back(model):
    return revert_sync_batchnorm(sync(model))


@pytest.mark.parametrize('convert', [sync, sync_and_back, fuse_conv_bn])
@pytest.mark.parametrize('name', [
    'test_resnet', 'test_efficientnet', 'mobilenetv3_small_050',
    full('regnety_002'), full('repvit_m1'), full('densenet121'),
    'efficientvit_m0'])
def test_the_hosts_converters_change_no_output(name, convert):
    backbone = as_trained(build(name))
    x = images(name)
    with torch.no_grad():
        (before, ) = backbone(x)
        backbone.timm_model = convert(backbone.timm_model)
        backbone.eval()
        for model in (backbone, backbone, copy.deepcopy(backbone)):
            (after, ) = model(x)
            error = (after - before).abs().max() / before.abs().max()
            assert error < 1e-5


def test_a_synchronised_norm_trains_as_before():
    """Reverted, for SyncBatchNorm itself takes CUDA alone in training."""
    backbone = as_trained(build('mobilenetv3_small_050')).train()
    twin = copy.deepcopy(backbone)
    twin.timm_model = sync(twin.timm_model)
    x = images('mobilenetv3_small_050')
    twin.eval()(x)  # where it is mended
    twin.timm_model = revert_sync_batchnorm(twin.timm_model)
    for model in (backbone, twin):
        model.train()(x)[0].square().sum().backward()
    grads = dict(backbone.named_parameters())
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name].grad)
    states = backbone.state_dict()
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(value, states[name])


# in these, fuse_conv_bn takes norms for those of other layers
@pytest.mark.parametrize('name', ['xcit_nano_12_p16_224',
                                  full('convmixer_768_32')])
def test_a_network_that_is_fused_wrongly_is_refused(name):
    backbone = as_trained(build(name))
    fuse_conv_bn(backbone.timm_model)
    x = images(name)
    for _ in range(2):
        with pytest.raises(ValueError, match='fuse_conv_bn') as info:
            backbone(x)
    assert name in one_line(info)


def test_an_activation_lost_to_another_converter_is_named():
    backbone = build('test_efficientnet').eval()
    convert = torch.nn.GroupNorm
    backbone.timm_model.bn1 = convert(1, backbone.timm_model.bn1.num_features)
    with pytest.raises(ValueError, match='GroupNorm.*activation') as info:
        backbone(images('test_efficientnet'))
    assert "'bn1'" in one_line(info)


def test_timms_own_converter_keeps_the_activations():
    backbone = build('test_efficientnet').eval()
    x = images('test_efficientnet')
    (before, ) = backbone(x)
    backbone.timm_model = timm.layers.convert_sync_batchnorm(
        backbone.timm_model)
    torch.testing.assert_close(backbone(x)[0], before)


def test_checkpointing_that_timm_lacks_is_named():
    with pytest.raises(ValueError, match='no gradient checkpointing') as info:
        build('dla46x_c', with_cp=True)
    assert 'dla46x_c' in one_line(info)


def test_error_of_a_size_leaves_frozen_parts_frozen():
    backbone = build(
        'swin_tiny_patch4_window7_224', frozen_stages=1).train()
    modes = [m.training for m in backbone.modules()]
    with pytest.raises(ValueError, match='100 x 100'):
        backbone(torch.zeros(1, 3, 100, 100))
    assert [m.training for m in backbone.modules()] == modes
    assert True in modes and False in modes


def test_error_that_is_not_about_the_size_passes_through():
    backbone = build()

    def fail(*_):
        raise RuntimeError('out of memory')

    backbone.timm_model.layer4.forward = fail
    with pytest.raises(RuntimeError, match='out of memory'):
        backbone(images('test_resnet'))


@pytest.mark.parametrize('name', ['repvgg_a0', 'fastvit_t8', 'repghostnet_050',
                                  'resnet18'])
def test_a_network_merged_for_deployment_gives_the_same(name):
    backbone = TimmFeatureBackbone(name)
    as_trained(backbone)
    x = torch.randn(2, 3, 64, 64)
    parameters = len(list(backbone.parameters()))
    with torch.no_grad():
        (before, ) = backbone(x)
        backbone.switch_to_deploy()
        (after, ) = backbone(x)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert (len(list(backbone.parameters())) < parameters) is (
        name != 'resnet18')


@pytest.mark.parametrize('name', ['test_efficientnet', 'test_vit',
                                  'test_convnext'])
def test_bias_and_norm_alone_are_tuned(name):
    backbone = build(name, tune='bias_and_norm', frozen_stages=0)
    stem = layer_depths(backbone.timm_model, coarse=True)
    for key, parameter in backbone.timm_model.named_parameters():
        owner = backbone.timm_model.get_submodule(key.rpartition('.')[0])
        part = key.endswith('bias') or isinstance(
            owner, nn.LayerNorm | nn.BatchNorm2d)
        assert parameter.requires_grad is (part and stem[key] > 0), key
    backbone.train()(images(name))[0].sum().backward()


def test_an_unknown_part_to_tune_is_named():
    with pytest.raises(ValueError, match="'bias_and_norm', got 'bias'"):
        build(tune='bias')


@pytest.mark.parametrize('stages', [1, 'all'])
def test_what_is_frozen_stays_so_when_it_is_merged(stages):
    merged = build('repvgg_a0', frozen_stages=stages)
    merged.switch_to_deploy()
    built = build('repvgg_a0', frozen_stages=stages, deploy=True)
    assert {n: p.requires_grad for n, p in merged.named_parameters()} == {
        n: p.requires_grad for n, p in built.named_parameters()}
    assert not merged.timm_model.stem.reparam_conv.weight.requires_grad


def test_a_fusion_is_judged_without_another_network(monkeypatch):
    backbone = as_trained(build('test_resnet'))
    fuse_conv_bn(backbone.timm_model)
    x = images('test_resnet')
    monkeypatch.setattr(timm, 'create_model', lambda **_: pytest.fail('built'))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    backbone(x)
    assert torch.equal(expected, torch.rand(3))


class Layers(nn.Module):
    """A convolution and a norm that ``fuse_conv_bn`` takes for a pair."""

    def __init__(self, kind):
        super().__init__()
        conv = timm.layers.StdConv2d if kind == 'standardised' else nn.Conv2d
        self.kind, self.conv, self.norm = kind, conv(3, 3, 1), (
            nn.BatchNorm2d(3))

    def forward(self, x):
        y = self.conv(x)
        if self.kind == 'norm first':
            return self.conv(self.norm(x))
        if self.kind == 'another use':
            return self.norm(y) + y
        if self.kind == 'two runs':
            return self.conv(self.norm(y))
        if self.kind == 'in place':
            y.relu_()
        return self.norm(y)


@pytest.mark.parametrize('kind', [
    'pair', 'norm first', 'another use', 'two runs', 'in place',
    'standardised'])
def test_a_norm_is_fused_with_the_layer_ahead_of_it_alone(kind):
    model = Layers(kind)
    run = Trace(model, (3, 8, 8)).run(lambda model, x: model(x))
    conversions = NormConversions(model, 'layers', run.pairs)
    x = torch.randn(2, 3, 8, 8)
    before = as_trained(model)(x)
    fuse_conv_bn(model)
    if kind == 'pair':
        conversions.mend()
        torch.testing.assert_close(model(x), before)
    else:
        assert not torch.allclose(model(x), before, atol=1e-3)
        with pytest.raises(ValueError, match="'layers' .* fuse_conv_bn"):
            conversions.mend()


@pytest.mark.parametrize('name', ['efficientvim_m1', full('repvit_m1')])
def test_a_network_is_built_merged_as_it_would_be_in_eval_mode(name):
    x = images(name, 1)
    (before, ) = build(name).eval()(x)
    (after, ) = build(name, deploy=True).eval()(x)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name, levels', [
    ('coat_lite_mini', (0, 1)), full('coat_lite_mini', (1, 2)),
    full('coat_tiny', (0, ))])
def test_what_two_parts_share_goes_from_both(name, levels):
    """The position encodings of CoaT: no parameter without a gradient."""
    # a backward pass on the meta device starts threads: no fork after it
    backbone = build(name, out_indices=levels)
    maps = backbone(torch.zeros(1, 3, *backbone.image_size))
    sum(y.sum() for y in maps).backward()
    assert not [key for key, parameter in backbone.named_parameters(
        remove_duplicate=False) if parameter.grad is None]


@pytest.mark.parametrize('size', [None, 512])
def test_the_stride_of_a_fixed_grid_is_that_on_its_own_images(size):
    with torch.device(LOOK_AT):
        backbone = build('mobilenetv5_base', img_size=size)
        (y, ) = backbone.eval()(torch.zeros(1, 3, *backbone.image_size))
    assert y.shape[2] * backbone.out_strides[0] == backbone.image_size[0]


def test_channels_last_leaves_other_ranks_alone():
    backbone = build('lambda_resnet26t', channels_last=True)
    assert any(p.ndim == 5 for p in backbone.parameters())


def test_tokens_ahead_of_the_map_are_counted():
    assert build('test_vit').num_extra_tokens == 1
    assert build('test_resnet').num_extra_tokens == 0
