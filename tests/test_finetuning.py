"""Fine-tuning that is right without tuning: rates, steps, a probe first."""

import json
import math

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from timm.optim import param_groups_layer_decay

from commands import OURS, last_line, main, python
from folders import images
from gap_plugin.cli import first_probe, train
from gap_plugin.engine import FinetuneOptimWrapperConstructor
from gap_plugin.engine import device as devices
from gap_plugin.features.images import BadImages
from gap_plugin.recipes import epochs_of, on_frozen, warm_up
from gap_plugin.timm_network import has_convolutions, is_transformer

RATE, AHEAD, DECAY = 3e-4, 10, 0.05


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Ten images of each of two classes, and as many to validate on."""
    root = tmp_path_factory.mktemp('images')
    for i, split in enumerate(('train', 'val')):
        for j, name in enumerate(('black', 'white')):
            images(root / split / name, 10, start=20 * i + 10 * j)
    return root


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Weights of small networks, in place of those of the hub."""
    from safetensors.torch import save_file
    root = tmp_path_factory.mktemp('weights')
    torch.manual_seed(0)
    for name in ('test_resnet', 'test_efficientnet', 'test_vit'):
        save_file(timm.create_model(name).state_dict(),
                  str(root / f'{name}.safetensors'))
    return root


@pytest.fixture
def config(folder, weights, tmp_path):
    """Writes a config; gives its path."""

    def write(network='test_resnet', *flags, name='config'):
        out = tmp_path / f'{name}.py'
        python(OURS / 'make_config.py', network, '--data-root', folder,
               '--checkpoint', weights / f'{network}.safetensors',
               '--workers', 0, '--img-size', 160 if 'vit' in network else 32,
               '--batch-size', 4, '--out', out, *flags)
        return out

    return write


def built(path, **changes):
    """The model of a config, and its optimizer."""
    cfg = Config.fromfile(str(path))
    cfg.merge_from_dict(changes)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    return model, build_optim_wrapper(model, cfg.optim_wrapper).optimizer


def settings(model, optimizer):
    """Name of each parameter -> rate and weight decay."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (group['lr'], group['weight_decay'])
             for group in optimizer.param_groups for p in group['params']
             if p.requires_grad}
    assert len(found) == len([p for p in model.parameters()
                              if p.requires_grad])
    return found


@pytest.mark.parametrize('network', ['test_resnet', 'test_efficientnet'])
def test_neck_and_head_are_ahead_of_a_convolutional_network(network, config):
    model, optimizer = built(config(network))
    flat = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert {n.split('.')[0] for n in flat} == {'backbone', 'neck', 'head'}
    for name, (rate, decay) in settings(model, optimizer).items():
        inside = name.startswith('backbone.')
        assert rate == pytest.approx(RATE if inside else AHEAD * RATE), name
        assert decay == (0 if name in flat else DECAY), name


def test_blocks_of_a_transformer_have_the_rates_of_timm(config):
    model, optimizer = built(config('test_vit'))
    network = model.backbone.timm_model
    names = {id(p): n for n, p in model.named_parameters()}
    expected = {
        names[id(p)]: (RATE * group['lr_scale'], group['weight_decay'])
        for group in param_groups_layer_decay(
            network, DECAY, network.no_weight_decay(), layer_decay=.75)
        for p in group['params']}
    assert len({rate for rate, _ in expected.values()}) == 7
    found = settings(model, optimizer)
    for name, wanted in expected.items():
        assert found.pop(name) == pytest.approx(wanted), name
    assert {n: rate for n, (rate, _) in found.items()} == {
        n: pytest.approx(AHEAD * RATE) for n in found}
    assert {n.split('.')[0] for n in found} == {'neck', 'head'}


def test_a_head_alone_has_the_rate_and_decay_of_its_width(config):
    """Few features need a higher one, and are not learned by heart."""
    for recipe, options in (
            ('finetune', {'model.backbone.frozen_stages': 'all'}),
            ('linear', {})):
        model, optimizer = built(config(
            'test_resnet', '--recipe', recipe, name=recipe), **options)
        assert model.head.in_channels == 96
        decay = pytest.approx((96 / 1280) ** 2)
        assert settings(model, optimizer) == {
            'neck.1.bn.weight': (1e-3, decay), 'neck.1.bn.bias': (1e-3, 0),
            'head.fc.weight': (pytest.approx(1e-3 * 1280 / 96), decay),
            'head.fc.bias': (1e-3, 0)}


def test_many_features_have_no_more_decay_than_is_given():
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(
        type='TimmFeatureClassifier', backbone=dict(
            type='TimmFeatureBackbone', model_name='test_resnet',
            frozen_stages='all'), neck=dict(type='GAPNeck'),
        head=dict(type='LinearHead', num_classes=2)))
    optimizer = dict(type='SGD', lr=.1)

    def found(frozen, custom_keys={}, **optim):
        return settings(model, build_optim_wrapper(model, dict(
            constructor='FinetuneOptimWrapperConstructor',
            paramwise_cfg=dict(frozen=frozen, custom_keys=custom_keys),
            optimizer=dict(optimizer, **optim))).optimizer)

    assert found(dict(weight_decay=.5, width=48)) == {
        'head.fc.weight': (.05, .5), 'head.fc.bias': (.1, 0)}
    # a number alone, a bias and what is named have no width
    model.head.scale = torch.nn.Parameter(torch.ones(()))
    model.head.magnitude = torch.nn.Parameter(torch.ones(2, 1))
    assert found(dict(weight_decay=.5, width=4800)) == {
        'head.fc.weight': (pytest.approx(5.), pytest.approx(.5 / 50 ** 2)),
        'head.fc.bias': (.1, 0), 'head.scale': (.1, .5),
        'head.magnitude': (.1, .5)}
    assert found(dict(width=4800), weight_decay=.3)['head.fc.bias'] == (.1, .3)
    del model.head.scale, model.head.magnitude
    assert found(dict(weight_decay=.5, width=4800), custom_keys={
        'head.fc': dict(lr_mult=2.)})['head.fc.weight'] == (.2, .5)
    # what it leaves out is that of the optimiser
    assert found(dict(lr=.2), weight_decay=.3) == {
        'head.fc.weight': (.2, .3), 'head.fc.bias': (.2, .3)}
    assert found({}) == {'head.fc.weight': (.1, 0), 'head.fc.bias': (.1, 0)}


def test_a_constructor_serves_frozen_and_trained_models(config):
    path = config('test_resnet')
    trained, _ = built(path)
    frozen, _ = built(path, **{'model.backbone.frozen_stages': 'all'})
    given = Config.fromfile(str(path)).optim_wrapper
    constructor = FinetuneOptimWrapperConstructor(
        dict(optimizer=given.optimizer), given.paramwise_cfg)
    first, _, third = (settings(model, constructor(model).optimizer)
                       for model in (trained, frozen, trained))
    assert first == third


def test_the_decay_of_a_frozen_network_follows_from_the_steps():
    assert [on_frozen(images, 32)['weight_decay'] for images in (
        10, 1440, 12_933, 1_281_167, None)] == [1, 1, .33, .034, .3]
    assert on_frozen(4 * 12_933, 128) == on_frozen(12_933, 32)


def test_what_is_frozen_is_not_listed(config, tmp_path, capfd):
    """The header says how many parameters are trained."""
    path = config('test_resnet', '--recipe', 'linear')
    train.main([str(path), '--work-dir', str(tmp_path / 'w'),
                '--cfg-options', 'train_cfg.max_epochs=1'])
    text = ''.join(capfd.readouterr())
    assert '0.00 M of them trained' in text and 'requires_grad' not in text


def test_without_weights_all_learn_alike(folder, tmp_path):
    out = tmp_path / 'config.py'
    name = next(n for n in timm.list_models('resnet*')
                if not timm.get_pretrained_cfg(n).has_weights)
    python(OURS / 'make_config.py', name, '--data-root', folder, '--out', out)
    cfg = Config.fromfile(str(out))
    assert cfg.optim_wrapper.optimizer.lr == 1e-3
    assert 'constructor' not in cfg.optim_wrapper


def test_other_settings_of_the_constructor():
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(
        type='TimmFeatureClassifier', backbone=dict(
            type='TimmFeatureBackbone', model_name='test_vit'),
        neck=dict(type='GAPNeck'), head=dict(
            type='LinearHead', num_classes=2)))

    def rates(**paramwise):
        found = settings(model, build_optim_wrapper(model, dict(
            constructor='FinetuneOptimWrapperConstructor',
            paramwise_cfg=paramwise, optimizer=dict(
                type='SGD', lr=1., weight_decay=.1))).optimizer)
        return {n: tuple(round(v, 9) for v in value)
                for n, value in found.items()}

    plain = rates()
    assert set(plain.values()) == {(1., .1)}
    first = 'backbone.timm_model.patch_embed.proj.weight'
    found = rates(layer_decay_rate=.5, custom_keys={
        'patch_embed': dict(lr_mult=3., decay_mult=0.)})
    assert found[first] == (3 * .5 ** 6, 0)
    assert found['head.fc.weight'] == (1., .1)
    position = 'backbone.timm_model.pos_embed'
    assert model.get_parameter(position).ndim == 3
    assert rates(flat_decay_mult=0.)[position] == (1., 0)
    named = dict(pos_embed=dict(decay_mult=.5))
    for others in {}, dict(flat_decay_mult=0.):  # what is named goes first
        assert rates(custom_keys=named, **others)[position] == (1., .05)


@pytest.mark.parametrize('backbone, norm, last', [
    (dict(type='VisionTransformer', arch='deit-t', out_type='raw'),
     'ln1.weight', 'layers.11.ln2.weight'),
    (dict(type='T2T_ViT', num_layers=2), 'norm.weight', 'pos_embed_')])
def test_backbones_of_the_host(backbone, norm, last):
    init_default_scope('mmpretrain')
    model = torch.nn.Module()
    model.backbone = MODELS.build(backbone)
    model.head = torch.nn.Linear(2, 2)

    def rates(decay):
        optimizer = build_optim_wrapper(model, dict(
            constructor='FinetuneOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=decay),
            optimizer=dict(type='SGD', lr=1.))).optimizer
        return {n: rate for n, (rate, _) in settings(model,
                                                     optimizer).items()}

    assert max(rates('auto').values()) == 1
    if hasattr(model.backbone, 'get_layer_depth'):
        found = rates(.5)
        assert found[f'backbone.{norm}'] == found[f'backbone.{last}'] == 1
        assert min(found.values()) == .5 ** 12
    else:
        with pytest.raises(ValueError, match='T2T_ViT.*layer_decay_rate'):
            rates(.5)


@pytest.mark.parametrize('paramwise, part', [
    (dict(head_lr_mul=2.), 'has no head_lr_mul; it takes head_lr_mult'),
    (dict(head_lr_mult=0), 'head_lr_mult'),
    (dict(head_lr_mult='10'), 'head_lr_mult'),
    (dict(head_lr_mult=math.nan), 'head_lr_mult'),
    (dict(frozen=dict(width=0)), 'frozen .* lr, weight_decay, width'),
    (dict(frozen=dict(width=True)), 'frozen'),
    (dict(frozen=dict(weight_decay=-1)), 'frozen'),
    (dict(frozen=dict(rate=1.)), 'frozen'),
    (dict(frozen=[1.]), 'frozen'),
    (dict(layer_decay_rate=1.5), 'layer_decay_rate'),
    (dict(layer_decay_rate=True), 'layer_decay_rate'),
])
def test_wrong_settings_of_the_constructor_are_named(paramwise, part):
    with pytest.raises(ValueError, match=part) as error:
        FinetuneOptimWrapperConstructor(
            dict(optimizer=dict(type='SGD', lr=.1)), paramwise)
    assert '\n' not in str(error.value)


def test_a_rate_is_needed():
    with pytest.raises(ValueError, match='give optimizer=dict'):
        FinetuneOptimWrapperConstructor(dict(optimizer=dict(type='SGD')))


def test_divided_parameters_are_refused():
    class Divided(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.ModuleDict(
                dict(_fsdp_wrapped_module=torch.nn.Linear(1, 1)))

    for trained in (True, False):
        with pytest.raises(ValueError, match='FSDP'):
            FinetuneOptimWrapperConstructor(
                dict(optimizer=dict(type='SGD', lr=.1)),
                dict(head_lr_mult=2.)).add_params(
                    [], Divided().requires_grad_(trained))


@pytest.mark.parametrize('network, nhwc, transformer', [
    ('test_resnet', True, False), ('test_efficientnet', True, False),
    ('test_nfnet', True, False), ('test_convnext', True, False),
    ('efficientformer_l1', True, False), ('poolformer_s12', True, False),
    ('coatnet_pico_rw_224', True, True), ('pvt_v2_b0', True, True),
    ('tiny_vit_5m_224', True, True), ('test_vit', False, True),
    ('swin_tiny_patch4_window7_224', False, True),
    ('mixer_s32_224', False, True), ('hiera_tiny_224', False, True),
    # a layer whose gradient torch cannot compute in NHWC
    ('fastvit_t8', False, False),
    ('levit_128s', False, True)])
def test_the_kind_of_a_network_follows_from_its_layers(network, nhwc,
                                                       transformer):
    with torch.device('meta'):
        model = timm.create_model(network, num_classes=0)
    assert has_convolutions(model) is nhwc
    assert is_transformer(model) is transformer


@pytest.mark.parametrize('network, nhwc', [
    ('test_resnet', True), ('test_vit', False)])
def test_memory_format_follows_the_layers(network, nhwc, config):
    model, _ = built(config(network), **{
        'model.backbone.channels_last': 'auto'})
    assert model.backbone.channels_last is nhwc
    weight = next(p for p in model.backbone.parameters()
                  if p.ndim == 4 and min(p.shape[1:]) > 1)
    assert weight.is_contiguous(
        memory_format=torch.channels_last) is nhwc


@pytest.mark.parametrize('images, batch, finetune, linear', [
    (4, 4, 100, 100), (100, 32, 100, 100), (480, 32, 34, 34),
    (1000, 32, 17, 20), (1000, 64, 34, 34), (5000, 32, 10, 20),
    (None, 32, 10, 20)])
def test_epochs_follow_from_the_number_of_images(images, batch, finetune,
                                                 linear):
    assert [epochs_of(recipe, images, batch) for recipe in (
        'finetune', 'linear')] == [finetune, linear]
    if images and finetune not in (10, 100):  # one epoch less: too few steps
        assert (finetune - 1) * (images // batch) < 500 <= (
            finetune * (images // batch))


def test_written_epochs_are_those_of_the_images(config):
    path = config()
    cfg = Config.fromfile(str(path))  # 20 images, 5 steps an epoch
    assert cfg.train_cfg.max_epochs == epochs_of('finetune', 20, 4) == 100
    assert cfg.param_scheduler[0].end == 50
    cfg = Config.fromfile(str(config('test_resnet', '--epochs', 7,
                                     name='other')))
    assert cfg.train_cfg.max_epochs == 7
    assert cfg.param_scheduler[0].end == 3


class Rates(Hook):
    """Notes the rates of each step."""

    def __init__(self):
        self.found = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.found.append({round(g['lr'], 12) for g in
                           runner.optim_wrapper.optimizer.param_groups})


@pytest.mark.parametrize('written, epochs, steps', [
    (1, 1, 0), (3, 3, 0), (4, 4, 2), (8, 8, 4), (4, 6, 2)])
def test_warm_up_counts_steps(written, epochs, steps, config, tmp_path):
    cfg = Config.fromfile(str(config('test_resnet', '--epochs', written)))
    assert warm_up(20, 4, written) == (5 * written // 10 if steps else 0)
    # with other epochs than those that are written, the cosine ends at the end
    cfg.merge_from_dict(dict(work_dir=str(tmp_path / 'w'),
                             train_cfg=dict(max_epochs=epochs),
                             experiment_name=f'warm_{epochs}',
                             val_cfg=None, val_dataloader=None,
                             val_evaluator=None))
    runner = Runner.from_cfg(cfg)
    rates = Rates()
    runner.register_hook(rates)
    runner.train()
    total = 5 * epochs
    assert len(rates.found) == total
    for i, found in enumerate(rates.found):
        share = 1. if i >= steps or steps < 2 else (
            .01 + .99 * i / (steps - 1))
        share *= (1 + math.cos(math.pi * i / total)) / 2
        assert sorted(found) == pytest.approx(
            [RATE * share, AHEAD * RATE * share], rel=1e-6, abs=1e-10)


def test_training_starts_from_the_probe(config, tmp_path, monkeypatch):
    path, work = config('test_resnet', '--epochs', '1'), tmp_path / 'w'
    seen = {}

    class Start(Hook):
        priority = 'VERY_LOW'

        def before_train(self, runner):
            seen['rates'] = {group['initial_lr'] for group in
                             runner.optim_wrapper.optimizer.param_groups}
            seen['state'] = {name: value.clone() for name, value
                             in runner.model.state_dict().items()}
            seen['val'] = runner.val_loop.run()

    def build(*args):
        runner = made(*args)
        runner.register_hook(Start())
        return runner

    made = train.build_runner
    monkeypatch.setattr(train, 'build_runner', build)
    text = main('train', path, '--work-dir', work, '--from-probe')
    file = work / 'probe' / 'linear_probe.pth'
    saved = torch.load(file, weights_only=True)['state_dict']
    assert saved.keys() == seen['state'].keys()
    for name, value in saved.items():
        assert torch.equal(seen['state'][name], value), name
    fresh, _ = built(path)
    moved = {name.split('.')[0] for name, value in
             fresh.state_dict().items() if not torch.equal(
                 value, saved[name])}
    assert moved == {'neck', 'head'}
    assert seen['rates'] == {RATE}  # nothing is new, nothing ahead
    top1 = seen['val']['accuracy/top1']
    assert f'probe    100 epochs, accuracy/top1 {top1:.2f}' in text
    test = main('test', path, file, '--work-dir', work)
    assert f'accuracy/top1 {top1:.2f}' in test
    # and it goes on by training all of it
    after = torch.load(work / 'epoch_1.pth', weights_only=True)['state_dict']
    assert any(not torch.equal(after[n], saved[n]) for n in saved
               if n.startswith('backbone'))

    stamp = file.stat().st_mtime_ns
    text = main('train', path, '--work-dir', work, '--from-probe', '--resume',
                '--cfg-options', 'train_cfg.max_epochs=2')
    assert seen['rates'] == {RATE}
    assert 'not repeated' in text and 'pass ' not in text
    assert file.stat().st_mtime_ns == stamp
    assert (work / 'epoch_2.pth').exists()


def test_a_run_that_left_nothing_behind_is_probed_on_resume(config,
                                                            tmp_path):
    path, work = config('test_resnet', '--epochs', '1'), tmp_path / 'w'
    text = main('train', path, '--work-dir', work, '--from-probe', '--resume',
                '--no-validate', '--amp')
    assert 'pass     over the images of train' in text
    assert 'probe    100 epochs; the training starts from' in text

    def made():
        store = work / 'probe' / 'features' / 'train' / 'store.json'
        return json.loads(store.read_text())['fingerprint']

    first = made()
    assert first['amp'] is True
    # other images for the network: what is stored is none of theirs
    main('train', path, '--work-dir', work, '--from-probe', '--amp',
         '--cfg-options', 'model.backbone.img_size=64')
    assert made()['network'] != first['network']


def test_the_probe_is_that_of_the_linear_recipe(config):
    cfg = Config.fromfile(str(config()))
    linear = first_probe._linear(cfg, 50_000)
    assert linear.optim_wrapper.to_dict() == dict(
        optimizer=dict(type='AdamW', lr=1e-3),
        constructor='FinetuneOptimWrapperConstructor',
        paramwise_cfg=dict(frozen=on_frozen(50_000, 4)))
    assert cfg.optim_wrapper.constructor  # the config's own stays


@pytest.mark.parametrize('flags, part', [
    (['--launcher', 'pytorch'], '--from-probe: a probe is one process'),
    (['--cfg-options', 'model.head.num_classes=1'], 'label'),
])
def test_a_probe_that_cannot_be_is_refused_in_one_line(flags, part, config,
                                                       tmp_path):
    text = main('train', config(), '--work-dir', tmp_path / 'w',
                '--from-probe', *flags, ok=False)
    assert ': error: ' in last_line(text) and part in last_line(text)
    assert not list(tmp_path.rglob('*.pth'))


def test_an_unreadable_image_is_named_without_flags_of_others(
        config, folder, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise BadImages("1 image of 'train' cannot be read: 'a; b.png' (why); "
                        'remove or replace them and use force=True')

    monkeypatch.setattr(first_probe, 'extract_splits', refuse)
    text = main('train', config(), '--work-dir', tmp_path / 'w',
                '--from-probe', ok=False)
    assert last_line(text).endswith("'a; b.png' (why); remove or replace "
                                    'them.')


@pytest.mark.parametrize('kind, has, told', [
    ('cpu', True, 'bfloat16'), ('cpu', False, None),
    ('cuda', (8, 0), 'float16'), ('cuda', (6, 1), None), ('mps', None, None)])
def test_mixed_precision_is_hinted_at_where_it_is_fast(kind, has, told,
                                                       monkeypatch):
    monkeypatch.setattr(devices, 'get_device', lambda: kind)
    monkeypatch.setattr(devices.platform, 'machine', lambda: 'x86_64')
    monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported',
                        lambda: has, raising=False)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: has)
    found = devices.half_precision()
    assert found is told or told in found


def test_the_hint_stands_in_the_header_of_a_run(config, tmp_path,
                                                monkeypatch):
    monkeypatch.setattr(train, 'half_precision', lambda: 'units')
    path = config('test_resnet', '--epochs', '1')
    text = main('train', path, '--work-dir', tmp_path / 'a')
    assert 'hint     --amp is faster with most networks: units' in text
    text = main('train', path, '--work-dir', tmp_path / 'b', '--amp')
    assert '\nhint ' not in text

