"""A model goes back to timm exactly, or is refused with what is in the way."""

import json

import huggingface_hub
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from PIL import Image
from timm.data import create_transform, resolve_data_config

import runs
from commands import ROOT, main
from errors import one_line
from folders import images as write_images
from gap_plugin.export import export_timm, hub, push_to_hub, to_timm
from gap_plugin.export.timm_classifier import whole_network
from gap_plugin.features.images import build_dataset, loader_config
from networks import SMALLEST, image_size, images

#: What the benchmark has measured.
TABLE = json.loads((ROOT / 'tools' / 'benchmarks' / 'results'
                    / 'to_timm.json').read_text(encoding='utf-8'))['rows']
TIMMS = [dict(type='TimmTestTransform'), dict(type='PackInputs')]
STOCK = [dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]

#: Too large for a sweep; the benchmark has them.
LARGE = {'beit_base_patch16_224', 'deepseek_vit_412m', 'gemma4_vit_167m',
         'naflexvit_base_patch16_parfac_gap', 'qwen3_vit_88m', 'vgg11',
         'vitamin_small_224', 'volo_d1_224'}


def classifier(network='test_resnet', neck=None, head=None, kind=None,
               data_preprocessor=None, size=None, **backbone):
    """A model whose norms, and classifier, do something."""
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    cfg = runs.model(network, **{'img_size': None, **backbone})
    cfg.update({key: value for key, value in dict(
        neck=neck, head=head, type=kind,
        data_preprocessor=data_preprocessor).items() if value is not None})
    model = MODELS.build(cfg)
    norms = [layer for layer in model.modules() if isinstance(
        layer, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(0.2 * torch.randn(value.shape))
        for value in model.head.parameters():
            value.normal_()
        for layer in norms:  # or all images give about the same
            layer.momentum = 1
        model.train().extract_feat(torch.randn(
            4, model.backbone.in_channels, *(
                size or model.backbone.image_size)))
    return model.eval()


def data(model, pipeline=TIMMS, count=4):
    """Digits, for a model."""
    cfg = Config(dict(test_dataloader=runs.data(
        'test', count, pipeline=pipeline)))
    return build_dataset(loader_config(cfg, 'test'), 'test', model)


def loaded(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def check_equal(model, folder, size=None):
    """Timm's network and the model, on images that no export has seen."""
    network = loaded(folder)
    chance = torch.Generator().manual_seed(7)
    x = torch.randn(3, model.backbone.in_channels, *(
        size or model.backbone.image_size), generator=chance)
    with torch.no_grad():
        expected = model(x, mode='tensor')
        off = (network(x) - expected).abs().max() / expected.abs().max()
    assert expected.std(0).max() > 1e-3 * expected.abs().max()
    assert off < 1e-5
    return network


KINDS = {
    'plain': ('test_resnet', {}, ''),
    'a convolution': ('dla46x_c', {}, ''),
    'the mean': ('convit_tiny', {}, "global_pool='avg'"),
    'no norm behind it': ('test_vit', {},
                          "global_pool='avg', fc_norm=False"),
    'no norm at all': ('test_vit', dict(timm_kwargs=dict(global_pool='avg')),
                       'final_norm=False'),
    'a norm in the head': ('shvit_s1', {}, ''),
    'two heads with norms': ('levit_128s', {},
                             'head.linear and head_dist.linear equal'),
    'two heads of which one is left': (
        'crossvit_tiny_240', {}, "global_pool='avg', head.1 alone"),
    'vectors': ('test_convnext', dict(out_feature='pre_logits'), ''),
    'behind the activation': (
        'test_nfnet', dict(out_feature='forward_features'), ''),
}


@pytest.mark.parametrize('kind', KINDS)
def test_timm_gives_the_same_logits(kind, tmp_path):
    network, backbone, how = KINDS[kind]
    model = classifier(network, **backbone)
    found = export_timm(model, tmp_path / 'out')
    assert found.how == how
    assert found.network < 1e-5
    check_equal(model, tmp_path / 'out')
    assert sorted(p.name for p in tmp_path.rglob('*')) == [
        'config.json', 'model.safetensors', 'out']
    assert len({p.stat().st_mode for p in (tmp_path / 'out').iterdir()}) == 1


REFUSED = {
    'test_convnext': ('head.norm', 'pre_logits'),
    'lcnet_035': ('conv_head, act2', 'pre_logits'),
    'test_nfnet': ('final_act', 'forward_features'),
    'efficientvit_b0': ('head.in_conv, head.classifier.0', 'pre_logits'),
}


@pytest.mark.parametrize('network', REFUSED)
def test_layers_in_the_way_are_named_and_what_can_be_done(network, tmp_path):
    layers, out_feature = REFUSED[network]
    model = classifier(network)
    with pytest.raises(ValueError, match='cannot go back') as error:
        export_timm(model, tmp_path / 'out')
    text = one_line(error)
    assert f'timm has {layers}' in text
    assert f'out_feature={out_feature!r}' in text
    assert not list(tmp_path.iterdir())
    # what is advised is right
    other = classifier(network, out_feature=out_feature)
    export_timm(other, tmp_path / 'out')
    check_equal(other, tmp_path / 'out')


def test_most_modules_go_back():
    """As the benchmark has measured it."""
    assert {row['network'] for row in TABLE} == set(SMALLEST.values())
    exact = [row for row in TABLE if 'how' in row['final_conv']]
    vectors = [row for row in TABLE if 'how' in row['pre_logits']]
    assert len(exact) >= 63
    assert len(vectors) >= 94
    assert max(row['final_conv'].get('logits', 0) for row in exact) < 1e-5
    for row in TABLE:
        text = row['final_conv'].get('refused')
        if text:  # what is said of it is what was measured
            advised = "out_feature='pre_logits'" in text
            assert advised == ('how' in row['pre_logits']) or (
                "out_feature='forward_features'" in text)


@pytest.mark.full
@pytest.mark.sweep
@pytest.mark.parametrize('row', [row for row in TABLE
                                 if row['network'] not in LARGE],
                         ids=lambda row: row['network'])
def test_each_module_goes_back_or_not_as_the_table_says(row):
    name = row['network']
    for out_feature in ('final_conv', 'pre_logits'):
        found = row[out_feature]
        model = classifier(name, size=image_size(name),
                           out_feature=out_feature)
        x = images(name, 2)
        if 'refused' in found:
            with pytest.raises(ValueError) as error:
                whole_network(model.backbone, 10, x)
            assert str(error.value) == found['refused']
            continue
        whole = whole_network(model.backbone, 10, x)
        assert whole.how == found['how']
        weight = torch.randn(10, model.head.in_channels).double()
        whole.classify(weight, torch.zeros(10).double())
        with torch.no_grad():
            features = model.backbone(x)[-1]
            features = features.flatten(2).mean(2) if (
                features.ndim == 4) else features
            expected = features.double() @ weight.T
            off = (whole.network(x) - expected).abs().max()
        assert off / expected.abs().max() < 1e-5


PARTS = {
    'MMPretrain alone': dict(
        kind='ImageClassifier', data_preprocessor=dict(
            mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=96)),
    'norm first': dict(
        neck=[dict(type='BNNeck'), dict(type='GAPNeck')]),
    'a norm of MMPretrain': dict(
        neck=[dict(type='GAPNeck'), dict(type='ClsBatchNormNeck',
                                         input_features=96)]),
    'two linear layers': dict(
        neck=[dict(type='GAPNeck'), dict(
            type='LinearNeck', in_channels=96, out_channels=24,
            norm_cfg=dict(type='BN1d'), act_cfg=None)],
        head=dict(type='LinearHead', num_classes=5)),
    'several labels': dict(head=dict(
        type='MultiLabelLinearClsHead', num_classes=5)),
    'no bias': dict(head=dict(type='LinearHead', num_classes=5, bias=False)),
    'one class': dict(head=dict(type='LinearHead', num_classes=1)),
}


@pytest.mark.parametrize('parts', PARTS)
def test_necks_and_heads_are_folded(parts, tmp_path):
    model = classifier(**PARTS[parts])
    found = export_timm(model, tmp_path / 'out')
    check_equal(model, tmp_path / 'out')
    assert any('sigmoid' in note for note in found.notes) == (
        parts == 'several labels')


SETTINGS = {
    'grey': dict(in_channels=1),
    'five channels': dict(in_channels=5),
    'an image size of a transformer': dict(network='test_vit', img_size=64),
    'an image size of a convolution': dict(img_size=96),
    'windows': dict(network='test_coatnet', img_size=(96, 128)),
    'arguments of timm': dict(network='test_vit', timm_kwargs=dict(
        depth=2, embed_dim=32, num_heads=2, drop_path_rate=.1)),
    'frozen': dict(frozen_stages=1),
    'in another layout': dict(channels_last=True),
    'several levels': dict(out_indices=(2, 4)),
    'no branches to merge': dict(deploy=True),
}


@pytest.mark.parametrize('settings', SETTINGS)
def test_settings_of_the_backbone_are_in_the_folder(settings, tmp_path):
    model = classifier(**SETTINGS[settings])
    export_timm(model, tmp_path / 'out')
    network = check_equal(model, tmp_path / 'out')
    assert network.pretrained_cfg['input_size'] == [
        model.backbone.in_channels, *model.backbone.image_size] or (
            tuple(network.pretrained_cfg['input_size']) == (
                model.backbone.in_channels, *model.backbone.image_size))


def test_what_cannot_be_carried_is_refused(tmp_path):
    for model, said in (
            (classifier('test_byobnet', timm_kwargs=dict(
                act_layer=torch.nn.ReLU)), 'timm_kwargs has act_layer='),
            (classifier('repvit_m1', deploy=True), 'deploy=True'),
            (classifier(out_indices=(1, 2)), 'has no place for'
             if False else 'cannot go back'),
            (classifier(kind='ImageClassifier', neck=dict(
                type='GlobalAveragePooling'), head=dict(
                    type='StackedLinearClsHead', num_classes=5,
                    in_channels=96, mid_channels=[8]), data_preprocessor=dict(
                        to_rgb=True)), 'one linear layer'),
            (classifier(head=dict(type='ArcFaceClsHead', num_classes=5)),
             'one linear layer')):
        with pytest.raises(ValueError) as error:
            export_timm(model, tmp_path / 'out')
        assert said in one_line(error)
        assert not list(tmp_path.iterdir())


def test_other_backbones_and_orders_of_colours_are_refused(tmp_path):
    resnet = MODELS.build(dict(
        type='TimmFeatureClassifier',
        backbone=dict(type='ResNet', depth=18),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearHead', num_classes=5, in_channels=512))).eval()
    with pytest.raises(ValueError, match='TimmFeatureBackbone'):
        export_timm(resnet, tmp_path / 'out')
    model = classifier()
    model.data_preprocessor._channel_conversion = False
    model.data_preprocessor.to_rgb = False
    with pytest.raises(ValueError, match='R, G, B'):
        export_timm(model, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_refused(tmp_path):
    model = classifier()
    model.head.fc.weight.data[0, 0] = float('nan')
    with pytest.raises(ValueError, match='there is no folder'):
        export_timm(model, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def nearly_constant():
    """A norm behind features that differ by little, as frozen ones may."""
    model = classifier()
    x = torch.randn(8, 3, *model.backbone.image_size)
    last = [layer for layer in model.backbone.modules() if isinstance(
        layer, torch.nn.BatchNorm2d)][-1]
    last.weight.mul_(1e-2 / model.backbone(x)[-1].std())
    last.bias.fill_(1.)
    pooled, norm = model.backbone(x)[-1].mean((2, 3)), model.neck[1].bn
    norm.running_mean.copy_(pooled.mean(0))
    norm.running_var.copy_(pooled.var(0))
    norm.eps = 0.
    return model


def test_what_float32_rounds_off_is_no_difference(tmp_path, monkeypatch):
    """Large summands of small logits, in the model as in the folder."""
    model = nearly_constant()
    found = export_timm(model, tmp_path / 'out')
    assert 1e-5 < found.network < 1e-3
    x = torch.randn(4, 3, *model.backbone.image_size)
    with torch.no_grad():  # neither is nearer to what is exact
        exact = model.double()(x.double(), mode='tensor')
        off = [float((network(x) - exact).abs().max()) for network in (
            model.float(), loaded(tmp_path / 'out'))]
    assert off[1] < 3 * off[0]
    affine = to_timm._affine

    def spoilt(model):
        model, weight, bias = affine(model)
        return model, weight, bias * (1 + 1e-5)

    monkeypatch.setattr(to_timm, '_affine', spoilt)
    with pytest.raises(ValueError, match='differ by'):
        export_timm(nearly_constant(), tmp_path / 'other')


@pytest.mark.parametrize('force', [False, True])
def test_a_folder_that_is_wrong_gets_no_name(force, tmp_path, monkeypatch):
    """What is written is compared, not what it was written from."""
    out = tmp_path / 'out'
    if force:
        export_timm(classifier('test_vit'), out)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    save = to_timm.save_for_hf

    def spoilt(network, *args, **kwargs):
        with torch.no_grad():
            network.fc.bias[1] += .01
        save(network, *args, **kwargs)

    monkeypatch.setattr(to_timm, 'save_for_hf', spoilt)
    with pytest.raises(ValueError, match='there is no folder') as error:
        export_timm(classifier(), out, force=force)
    assert 'differ by' in one_line(error)
    assert before == {
        p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert len(list(tmp_path.iterdir())) == force


def test_what_is_there_is_replaced_if_it_is_timms_alone(tmp_path):
    model, out = classifier(), tmp_path / 'out'
    out.mkdir()
    with pytest.raises(FileExistsError, match='force=True'):
        export_timm(model, out)
    (out / 'notes.txt').write_text('mine', encoding='utf-8')
    with pytest.raises(FileExistsError, match=r'notes\.txt'):
        export_timm(model, out, force=True)
    assert (out / 'notes.txt').read_text(encoding='utf-8') == 'mine'
    (out / 'notes.txt').unlink()
    export_timm(model, out, force=True)
    export_timm(classifier('test_vit'), out, force=True)
    assert json.loads((out / 'config.json').read_text(
        encoding='utf-8'))['architecture'] == 'test_vit'
    with pytest.raises(FileNotFoundError, match='make it first'):
        export_timm(model, tmp_path / 'none' / 'out')
    (tmp_path / 'file').write_text('mine', encoding='utf-8')
    with pytest.raises(FileExistsError, match='is a file'):
        export_timm(model, tmp_path / 'file', force=True)
    (tmp_path / 'file').unlink()
    assert [p.name for p in tmp_path.iterdir()] == ['out']


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(network, folder, *args, **kwargs):
        (tmp_path / 'out.partial').mkdir()
        (tmp_path / 'out.partial' / 'config.json').touch()
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(to_timm, 'save_for_hf', full)
    with pytest.raises(OSError, match='No space left') as error:
        export_timm(classifier(), tmp_path / 'out')
    assert 'cannot write' in one_line(error)
    assert not list(tmp_path.iterdir())


def test_files_of_people_give_the_models_scores(tmp_path):
    """Pixels included: timm's way from a photo, and MMPretrain's."""
    write_images(tmp_path / 'data' / 'a', 3)
    Image.new('LA', (90, 30), (30, 5)).save(tmp_path / 'data/a/grey.png')
    for test in (dict(crop_pct=.8, interpolation='bilinear', img_size=64),
                 dict(crop_mode='squash', crop_pct=.9),
                 dict(crop_mode='border', img_size=48)):
        model = classifier('test_resnet')
        cfg = Config(dict(test_dataloader=dict(batch_size=2, dataset=dict(
            type='CustomDataset', data_root=str(tmp_path / 'data'), pipeline=[
                dict(type='LoadTimmImage'),
                dict(type='TimmTestTransform', **test),
                dict(type='PackInputs')]))))
        dataset = build_dataset(loader_config(cfg, 'test'), 'test', model)
        found = export_timm(model, tmp_path / 'out', dataset, classes=list(
            'abcdefghij'), force=True)
        assert (found.images, found.pixels, found.notes) == (4, 0, ())
        network = loaded(tmp_path / 'out')
        transform = create_transform(**resolve_data_config(
            {}, pretrained_cfg=network.pretrained_cfg), is_training=False)
        for sample in dataset:
            path = sample['data_samples'].img_path
            with Image.open(path) as image:
                x = transform(image.convert('RGB'))[None]
            batch = model.data_preprocessor(dict(
                inputs=sample['inputs'][None]))
            expected = model(batch['inputs'], mode='tensor')
            torch.testing.assert_close(network(x), expected, rtol=1e-4,
                                       atol=1e-4)


def test_a_pipeline_that_timm_has_not_is_told(tmp_path):
    model = classifier()
    found = export_timm(model, tmp_path / 'out', data(model, STOCK))
    assert 'no form of the test pipeline' in found.notes[0]
    assert found.images == 4
    assert found.pixels is None
    assert loaded(tmp_path / 'out').pretrained_cfg['input_size'][1:] in (
        [32, 32], (32, 32))


def test_names_are_data(tmp_path):
    names = ['"', '<script>', '{{ 1 }}', 'a\nb', 'é', '\udcff', "'; --",
             '${x}', '', ',']
    found = export_timm(classifier(), tmp_path / 'ou t"ü', classes=names)
    network = loaded(tmp_path / 'ou t"ü')
    assert network.pretrained_cfg['label_names'] == names
    assert all('\n' not in line for line in found.lines().values())
    with pytest.raises(ValueError, match='3 names of classes'):
        export_timm(classifier(), tmp_path / 'other', classes=names[:3])


def test_a_folder_is_a_network_to_start_from(tmp_path):
    """Its name is a model_name; what it says of classes stays behind."""
    first = classifier('test_vit', img_size=64, timm_kwargs=dict(depth=2))
    export_timm(first, tmp_path / 'first', classes=list('abcdefghij'))
    second = classifier(f'local-dir:{tmp_path / "first"}', pretrained=True)
    found = export_timm(second, tmp_path / 'second')
    network = check_equal(second, tmp_path / 'second')
    assert not network.pretrained_cfg.get('label_names')
    assert any('names of the classes' in note for note in found.notes)


def checkpoint(tmp_path, classes=tuple('0123456789')):
    """A checkpoint of the digits' config."""
    model = classifier(
        'test_nfnet', img_size=32, out_feature='forward_features')
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        dataset_meta=dict(classes=list(classes)))), path)
    return path


def export(tmp_path, *flags, ok=True):
    return main('export', 'digits/test_nfnet', checkpoint(tmp_path),
                '--format', 'timm', '--cfg-options',
                'model.backbone.out_feature=forward_features', *flags, ok=ok)


def test_the_command_says_how_it_is_loaded(tmp_path):
    out = tmp_path / 'stamps'
    text = export(tmp_path, '--out', out)
    assert f"timm.create_model('local-dir:{out}', pretrained=True)" in text
    assert 'without pretrained=True timm gives random weights' in text
    assert 'pixels 0 of 255' in text
    network = loaded(out)
    assert network.pretrained_cfg['label_names'] == list('0123456789')
    assert export(tmp_path, '--out', out, ok=False).count('\n') <= 1
    export(tmp_path, '--out', out, '--force')


@pytest.mark.parametrize('flags, said', [
    (['--out', 'x.onnx'], 'name a folder'),
    (['--out', 'x', '--cam'], 'has no --cam'),
    (['--out', 'x', '--push-to-hub', 'a/b/c'], 'no name of a repository'),
    (['--out', '.', '--force'], 'stays'),
    (['--out', 'x/y'], 'make it first'),
])
def test_flags_that_do_not_fit_are_refused(flags, said, tmp_path,
                                           monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = export(tmp_path, *flags, ok=False)
    assert said in text
    assert text.count('\n') <= 1


class Hub:
    """What stands for the hub of Hugging Face: it keeps what it is told."""

    told = []

    def create_repo(self, name, exist_ok):
        self.told.append(('create', name))
        return huggingface_hub.RepoUrl(f'https://huggingface.co/me/{name}')

    def file_exists(self, name, file):
        return name == 'me/known'

    def upload_file(self, path_or_fileobj, repo_id, path_in_repo):
        self.told.append((path_in_repo, repo_id, path_or_fileobj.decode()))

    def upload_folder(self, folder_path, repo_id):
        self.told.append(('upload', repo_id, folder_path))


def test_a_folder_is_pushed_with_a_card_if_there_is_none(
        tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
    monkeypatch.setattr(hub, 'hub_answers', lambda: True)
    monkeypatch.setattr(Hub, 'told', [])
    assert push_to_hub(tmp_path, 'stamps') == 'hf-hub:me/stamps'
    assert push_to_hub(tmp_path, 'known') == 'hf-hub:me/known'
    made, card, sent, *known = Hub.told
    assert made == ('create', 'stamps')
    assert card[:2] == ('README.md', 'me/stamps')
    assert 'library_name: timm' in card[2]
    assert sent == ('upload', 'me/stamps', tmp_path)
    assert known == [('create', 'known'), ('upload', 'me/known', tmp_path)]


def test_a_hub_that_does_not_answer_leaves_the_folder(tmp_path):
    """Tests have no network: it fails at the first word to the hub."""
    out = tmp_path / 'stamps'
    text = export(tmp_path, '--out', out, '--push-to-hub', 'me/stamps',
                  ok=False)
    assert 'is whole, but cannot be uploaded' in text.splitlines()[-1]
    assert 'Traceback' not in text
    loaded(out)
