"""Weights that fit are loaded whole, all others are refused, in each way."""

import copy
import json
from collections import OrderedDict

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import get_state_dict
from mmpretrain import get_model
from mmpretrain.registry import MODELS
from timm.layers import resample_abs_pos_embed

from errors import one_line
from gap_plugin import TimmFeatureBackbone
from gap_plugin.timm_network import create
from networks import SMALLEST, full, sweep
from runs import HOOKS, data, model, runner


def built(name, **kwargs):
    torch.manual_seed(0)
    return TimmFeatureBackbone(name, **kwargs)


def weights(name='test_resnet', seed=5, **kwargs):
    """What timm would save of a network, classifier included."""
    torch.manual_seed(seed)
    return dict(timm.create_model(name, **kwargs).state_dict())


def saved(content, folder, name='w.pth'):
    torch.save(content, folder / name)
    return str(folder / name)


def check_equal(backbone, theirs):
    ours = backbone.timm_model.state_dict()
    assert ours
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.fixture(autouse=True)
def log(caplog):
    """What MMEngine's logger is told."""
    init_default_scope('mmpretrain')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: ' '.join(r.getMessage() for r in caplog.records)
    logger.removeHandler(caplog.handler)


# --- where in a file the weights are ---------------------------------------


@pytest.mark.parametrize('prefix', [
    '', 'module.', '_orig_mod.', 'model.', 'net.', 'backbone.', 'encoder.',
    'module._orig_mod.', 'teacher.module.backbone.', 'anything.at.all.'])
@pytest.mark.parametrize('nest', [
    None, 'model', 'state_dict', 'module', 'teacher', 'model_state_dict',
    'state_dict_ema'])
def test_weights_are_found_whatever_stands_ahead_of_them(tmp_path, nest,
                                                         prefix):
    theirs = weights()
    content = under(prefix, theirs)
    if nest:
        content = {nest: content, 'epoch': 3,
                   'optimizer': dict(state={0: dict(step=torch.ones(1))})}
    path = saved(content, tmp_path, 'w.ckpt')
    check_equal(built('test_resnet', checkpoint_path=path), theirs)


@pytest.mark.parametrize('key, seed', [(None, 6), ('teacher', 6),
                                       ('student', 5),
                                       ('student.module', 5)])
def test_of_weights_that_fit_equally_the_taken_are_named(tmp_path, key, seed,
                                                         log):
    path = saved(dict(student=under('module.backbone.', weights(seed=5)),
                      teacher=under('backbone.', weights(seed=6))), tmp_path)
    backbone = built('test_resnet', checkpoint_path=path, checkpoint_key=key)
    check_equal(backbone, weights(seed=seed))
    if key is None:
        assert "under 'teacher.backbone.' are taken" in log()
        assert "checkpoint_key='student.module.backbone'" in log()


@pytest.mark.parametrize('taken, other', [
    ('state_dict.backbone.timm_model.',  # of MMEngine
     'ema_state_dict.module.backbone.timm_model.'),
    ('state_dict_ema.', 'state_dict.'), ('model_ema.', 'model.'),  # of timm
    ('teacher.module.backbone.', 'student.')])
def test_averaged_weights_are_taken_first(tmp_path, taken, other):
    content = {}
    for place, seed in ((other, 5), (taken, 6)):
        nest, _, prefix = place.partition('.')
        content[nest] = under(prefix, weights(seed=seed))
    path = saved(content, tmp_path)
    check_equal(built('test_resnet', checkpoint_path=path), weights(seed=6))


def test_a_key_that_leads_nowhere_is_named(tmp_path):
    path = saved(dict(teacher=weights()), tmp_path)
    with pytest.raises(ValueError, match="'pupil': .* has 'teacher'") as info:
        built('test_resnet', checkpoint_path=path, checkpoint_key='pupil')
    one_line(info)
    with pytest.raises(ValueError, match='checkpoint_key'):
        built('test_resnet', checkpoint_key='pupil')


# --- what is needed, and what nobody needs ---------------------------------


def test_a_decoder_is_left_out_with_a_line(tmp_path, log):
    theirs = weights('test_vit')
    path = saved(dict(model={
        **theirs, 'mask_token': torch.zeros(1, 1, 64),
        'decoder_blocks.0.attn.qkv.weight': torch.zeros(3, 3)}), tmp_path)
    check_equal(built('test_vit', checkpoint_path=path), theirs)
    assert 'left out' in log()
    assert 'decoder_blocks.0.attn.qkv.weight' in log()


@pytest.mark.parametrize('name', ['vit_tiny_patch16_dinov3_qkvb', *map(full, (
    'vit_small_patch14_dinov2', 'sam2_hiera_tiny',
    'eva02_tiny_patch14_224.mim_in22k'))])
def test_a_classifier_is_left_out_where_timms_weights_have_none(tmp_path,
                                                                name):
    assert timm.get_pretrained_cfg(name).num_classes == 0
    theirs = weights(name, num_classes=10)
    path = saved(theirs, tmp_path)
    assert {n for n in theirs if n.startswith('head.')}
    check_equal(built(name, checkpoint_path=path), theirs)


def test_tables_that_the_network_makes_itself_may_be_there(tmp_path):
    theirs = weights('test_vit')
    theirs['blocks.0.attn.relative_position_index'] = torch.zeros(2).long()
    path = saved(theirs, tmp_path)
    check_equal(built('test_vit', checkpoint_path=path), theirs)


@pytest.mark.parametrize('name', sweep(SMALLEST.values()))
def test_an_own_checkpoint_loads_again(tmp_path, name):
    source = built(name)
    for value in source.parameters():
        torch.nn.init.normal_(value, std=.02)
    path = saved(dict(state_dict=OrderedDict(
        under('backbone.', source.state_dict()))), tmp_path)
    twin = built(name, checkpoint_path=path)
    check_equal(twin, source.timm_model.state_dict())
    init_cfg = dict(type='Pretrained', checkpoint=path)
    for options in ({}, dict(prefix='backbone')):
        twin = built(name, init_cfg=dict(init_cfg, **options))
        twin.init_weights()
        check_equal(twin, source.timm_model.state_dict())


@pytest.mark.full
def test_an_own_checkpoint_lacks_a_pooling_that_is_not_used(tmp_path):
    name = 'vit_base_patch16_siglip_224'
    source = built(name)
    assert not [n for n in source.state_dict() if 'attn_pool' in n]
    path = saved(dict(state_dict=source.state_dict()), tmp_path)
    check_equal(built(name, checkpoint_path=path),
                source.timm_model.state_dict())


# --- the other ways to timm's loader ---------------------------------------


def local_dir(folder, content, name='test_resnet'):
    cfg = timm.get_pretrained_cfg(name).to_dict()
    for key in ('url', 'hf_hub_id', 'tag', 'architecture'):
        cfg.pop(key, None)
    (folder / 'config.json').write_text(json.dumps(dict(
        architecture=name, num_classes=1000, pretrained_cfg=cfg)))
    saved(content, folder, 'pytorch_model.bin')
    return f'local-dir:{folder}'


def test_a_folder_is_held_to_the_same_rule(tmp_path):
    theirs = weights()
    name = local_dir(tmp_path, under('encoder.', theirs))
    check_equal(built(name, pretrained=True), theirs)
    missing = dict(list(theirs.items())[:-20])
    local_dir(tmp_path, under('encoder.', missing))
    with pytest.raises(ValueError, match='weights missing: ') as info:
        built(name, pretrained=True)
    assert name in one_line(info)
    local_dir(tmp_path, weights('test_vit'))
    with pytest.raises(ValueError, match='does not fit'):
        built(name, pretrained=True)


def test_timms_own_weights_may_hold_more_but_not_less(tmp_path, monkeypatch,
                                                      log):
    theirs = weights()
    path = saved({**theirs, 'layer1.9.conv1.weight': torch.zeros(1)},
                 tmp_path)
    monkeypatch.setattr(create, 'reachable_weights', lambda _: dict(
        file=path, source='', custom_load=False))
    check_equal(built('test_resnet', pretrained=True), theirs)
    saved(dict(list(theirs.items())[5:]), tmp_path)
    with pytest.raises(ValueError, match='weights missing: '):
        built('test_resnet', pretrained=True)
    # such as those of convnext_atto.fcmae
    theirs = weights('test_convnext')
    theirs = {n: v for n, v in theirs.items() if 'head' not in n}
    saved(theirs, tmp_path)
    built('test_convnext', pretrained=True, out_feature='pre_logits')
    assert "left as they were made: 'head.norm.weight'" in log()


# --- MMEngine's ways -------------------------------------------------------


def classifier(**changes):
    cfg = model()
    cfg['head'].update(changes)
    return cfg


def checkpoint(folder, cfg=None):
    torch.manual_seed(5)
    source = MODELS.build(cfg or classifier())
    return source, saved(dict(state_dict=source.state_dict()), folder)


def test_training_from_another_count_of_classes_leaves_the_head_out(
        tmp_path):
    source, path = checkpoint(tmp_path, classifier(num_classes=4))
    run = runner(tmp_path, load_from=path, custom_hooks=[
        dict(type='EMAHook')], optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.)))
    assert any(isinstance(hook, EMAHook) for hook in run.hooks)
    run.train()
    theirs = source.backbone.state_dict()
    ours = run.model.backbone.state_dict()
    name = 'timm_model.conv1.0.weight'
    assert torch.equal(ours[name], theirs[name])
    log = next(tmp_path.rglob('*.log')).read_text()
    assert 'left as they were made' in log and "'head.fc.weight'" in log


@pytest.mark.parametrize('kind', ['Runner', 'FlexibleRunner'])
def test_a_test_with_another_count_of_classes_is_refused(tmp_path, kind):
    _, path = checkpoint(tmp_path, classifier(num_classes=4))
    run = RUNNERS.get(kind).from_cfg(Config(dict(
        model=classifier(), work_dir=str(tmp_path / 'w'), load_from=path,
        test_cfg=dict(), test_dataloader=data('test'), env_cfg=dict(),
        test_evaluator=dict(type='Accuracy'), default_hooks=HOOKS,
        experiment_name=f'{kind}{tmp_path.name}',
        default_scope='mmpretrain')))
    with pytest.raises(ValueError, match="another shape: 'head.fc") as info:
        run.test()
    one_line(info)


OTHERS = {
    'another network': lambda state: under(
        'backbone.timm_model.', weights('test_vit')),
    'parts missing': lambda state: OrderedDict(
        item for item in state.items() if 'layer4' not in item[0]),
    'parts more': lambda state: {
        **state, 'backbone.timm_model.layer1.7.conv1.weight': torch.ones(1)},
    'another backbone': lambda state: {
        **state, 'backbone.stem.weight': torch.ones(1)},
    'nothing that fits': lambda state: under('a.', weights('test_vit')),
}


@pytest.mark.parametrize('initialised', [False, True])
@pytest.mark.parametrize('kind', OTHERS)
def test_the_checkpoint_of_another_network_is_refused(tmp_path, kind,
                                                      initialised):
    source, _ = checkpoint(tmp_path)
    path = saved(dict(state_dict=OTHERS[kind](source.state_dict())), tmp_path)
    ours = MODELS.build(classifier())
    if initialised:
        ours.init_weights()
    with pytest.raises(ValueError, match='fit') as info:
        load_checkpoint(ours, path)
    one_line(info)
    with pytest.raises(ValueError, match='fit'):
        get_model(Config(dict(model=classifier())), pretrained=path)


def test_a_users_own_loading_stays_torchs():
    ours = MODELS.build(classifier())
    found = ours.load_state_dict(
        {'head.fc.bias': torch.ones(10)}, strict=False)
    assert 'backbone.timm_model.conv1.0.weight' in found.missing_keys
    plain = torch.nn.Linear(1, 2)
    plain.load_state_dict({}, strict=False)


def test_other_models_are_left_to_mmengine(tmp_path):
    path = saved(dict(state_dict=dict(weight=torch.ones(3, 2))), tmp_path)
    load_checkpoint(torch.nn.Linear(2, 3), path)


def test_a_wrapped_model_is_unwrapped_by_name(tmp_path):
    source, _ = checkpoint(tmp_path)
    path = saved(dict(state_dict=under('model._orig_mod.',
                                       source.state_dict())), tmp_path)
    ours = get_model(Config(dict(model=classifier())), pretrained=path)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_init_cfg_without_a_file_that_fits_is_refused(tmp_path):
    path = saved(weights('test_vit'), tmp_path)
    ours = built('test_resnet', init_cfg=dict(type='Pretrained',
                                              checkpoint=path))
    with pytest.raises(ValueError, match='fit'):
        ours.init_weights()
    ours = built('test_resnet', init_cfg=dict(
        type='Pretrained', checkpoint=path, prefix='backbone'))
    with pytest.raises(ValueError, match="no weights under 'backbone.'"):
        ours.init_weights()


# --- another image size ----------------------------------------------------


def resized(name, size, way, path):
    if way == 'checkpoint_path':
        return built(name, img_size=size, checkpoint_path=path)
    if way == 'init_cfg':
        found = built(name, img_size=size, init_cfg=dict(
            type='Pretrained', checkpoint=path, prefix='backbone'))
        found.init_weights()
        return found
    found = torch.nn.ModuleDict(dict(backbone=built(name, img_size=size)))
    load_checkpoint(found, path)
    return found.backbone


def sized(folder, name, size):
    source = built(name, img_size=size)
    for value in source.parameters():
        torch.nn.init.normal_(value, std=.02)
    holder = torch.nn.ModuleDict(dict(backbone=source))
    return source, saved(dict(state_dict=get_state_dict(holder)), folder)


@pytest.mark.parametrize('way', ['checkpoint_path', 'init_cfg', 'load_from'])
@pytest.mark.parametrize('source, target', [
    ((64, 256), (128, 128)),  # as many positions
    ((128, 128), (64, 256)),
    ((96, 160), (64, 128)),
    ((64, 256), (64, 256))])
def test_position_embeddings_are_resampled_by_their_true_grid(
        tmp_path, way, source, target):
    made, path = sized(tmp_path, 'test_vit', source)
    ours = resized('test_vit', target, way, path)
    assert made.timm_model.pos_embed.shape[1] == 1 + source[0] * source[
        1] // 256
    wanted = resample_abs_pos_embed(
        made.timm_model.pos_embed, [s // 16 for s in target],
        [s // 16 for s in source])
    torch.testing.assert_close(ours.timm_model.pos_embed, wanted)
    # the file, and what was read of it, are as they were
    again = resized('test_vit', target, way, path)
    assert torch.equal(again.timm_model.pos_embed, ours.timm_model.pos_embed)


@pytest.mark.full
@pytest.mark.parametrize('way', ['checkpoint_path', 'init_cfg', 'load_from'])
def test_tables_of_windows_are_resampled_by_their_true_windows(tmp_path, way):
    name = 'swin_tiny_patch4_window7_224'
    made, path = sized(tmp_path, name, (64, 256))
    same = resized(name, (64, 256), way, path)
    check_equal(same, made.timm_model.state_dict())
    other = resized(name, (128, 128), way, path)
    table = 'layers.2.blocks.0.attn.relative_position_bias_table'
    was = made.timm_model.get_parameter(table)
    now = other.timm_model.get_parameter(table)
    assert was.shape != now.shape
    # the middle of a table is a position's bias to itself
    middle = was[len(was) // 2], now[len(now) // 2]
    torch.testing.assert_close(*middle, rtol=0, atol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize('way', ['checkpoint_path', 'init_cfg', 'load_from'])
def test_a_network_that_is_resized_after_it_is_built_loads(tmp_path, way):
    made, path = sized(tmp_path, 'efficientvit_m0', 192)
    check_equal(resized('efficientvit_m0', 192, way, path),
                made.timm_model.state_dict())


def test_a_grid_that_cannot_be_known_is_refused(tmp_path):
    path = saved(weights('test_vit', img_size=128), tmp_path)
    with pytest.raises(ValueError, match='8 x 8 or 4 x 16') as info:
        built('test_vit', img_size=(64, 256), checkpoint_path=path)
    one_line(info)
    path = saved(weights('test_vit', img_size=(48, 160)), tmp_path)
    with pytest.raises(ValueError, match='for 30 positions'):
        built('test_vit', img_size=128, checkpoint_path=path)


def test_loading_changes_no_state_dict_of_the_caller(tmp_path):
    made, path = sized(tmp_path, 'test_vit', (64, 256))
    found = torch.load(path)['state_dict']
    before = copy.deepcopy(found), copy.deepcopy(found._metadata)
    holder = torch.nn.ModuleDict(dict(backbone=built('test_vit',
                                                     img_size=128)))
    holder.load_state_dict(found)
    assert found._metadata == before[1]
    assert all(torch.equal(found[k], v) for k, v in before[0].items())
