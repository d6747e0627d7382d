"""Complete configs for a network and data of one's own."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from .datasets.folder import KNOWN, Data, folder_data, known_data, listed_data
from .files import read_text, written_whole
from .messages import refuse_undecodable, shorten
from .recipes import RECIPES, epochs_of, optim_wrapper_text, schedule_text
from .timm_network import check_name, is_registered


@dataclass(frozen=True)
class NewConfig:
    """What a config is written for.

    Args:
        model: Any name of timm.
        data_root: Where the images are.
        dataset: ``'folder'``, or a dataset of MMPretrain: see
            :data:`~gap_plugin.datasets.folder.KNOWN`.
        train_list: Lines ``image label``, relative to ``data_root``, in
            place of folders.
        val_list: Lines of that form for the validation images.
        classes: File of the names of the classes, a line each, for lists.
        val_share: Share of each class that is held out, where there is no
            ``val/``; over 0, under 1.
        recipe: Key of :data:`~gap_plugin.recipes.RECIPES`.
        checkpoint: Local weights of the network, in place of the hub's.
        img_size: Side of the image; None for the network's own.
        epochs: None for what fits recipe and number of images.
        batch_size: Images a step, 2 at least.
        workers: Processes that load images; None for one a core, 4 at most.
        seed: Of the split and of the training.
        out: Config file; None for ``<model>_<folder>.py``.
        force: Whether files that exist are written over.

    Raises:
        ValueError: If a value is out of its range.
    """

    model: str
    data_root: Path
    dataset: str = 'folder'
    train_list: Path | None = None
    val_list: Path | None = None
    classes: Path | None = None
    val_share: float = 0.2
    recipe: str = 'finetune'
    checkpoint: Path | None = None
    img_size: int | None = None
    epochs: int | None = None
    batch_size: int = 32
    workers: int | None = None
    seed: int = 0
    out: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_name(self.model)
        if '\n' in self.model or '\r' in self.model:
            raise ValueError(f'model={self.model!r} is more than one line: '
                             'give it another name.')
        if not 0 < self.val_share < 1:
            raise ValueError(f'val_share={self.val_share} must lie between 0 '
                             'and 1.')
        for name, least in (('epochs', 1), ('batch_size', 2),
                            ('img_size', 1), ('workers', 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f'{name}={value} is too small, {least} is '
                                 'the least.')
        if bool(self.train_list) != bool(self.val_list):
            raise ValueError('train_list and val_list belong together: give '
                             'both.')
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise ValueError(f'checkpoint={str(self.checkpoint)!r} is not a '
                             'file.')
        if (self.recipe == 'linear' and not self.checkpoint
                and not has_weights(self.model)):
            raise ValueError(
                f'recipe=linear: timm has no weights for {self.model!r}, and '
                'a frozen network needs some; give checkpoint=FILE, or use '
                'recipe=finetune.')
        if self.out is not None and (self.out.suffix != '.py'
                                     or self.out.is_dir()):
            raise ValueError(f'out={str(self.out)!r} must be a file that ends '
                             'in .py.')

    @property
    def path(self) -> Path:
        """The config file."""
        stem = f'{self.model}_{self.data_root.resolve().name}'
        return self.out or Path(re.sub(r'[^\w-]', '_', stem) + '.py')

    @property
    def from_scratch(self) -> bool:
        """Whether there are no weights to start from."""
        return not self.checkpoint and not has_weights(self.model)


def has_weights(name: str) -> bool:
    """Whether timm has pretrained weights under a name."""
    if not is_registered(name):
        return True  # a repository or a folder of weights
    cfg = get_pretrained_cfg(name)
    return cfg is None or cfg.has_weights  # None: a former name


def read_data(request: NewConfig, read: bool = True) -> Data:
    """The dataset that a config is for.

    Args:
        request: Which one.
        read: Whether files that cannot be read are refused.

    Raises:
        ValueError: If it cannot be trained on.
    """
    root = request.data_root.expanduser().resolve()
    if request.dataset in KNOWN:
        return known_data(request.dataset, root)
    if not root.is_dir():
        raise ValueError(f'data_root={str(root)!r} is not a folder.')
    if request.train_list:
        names = request.classes and [
            n for n in read_text(request.classes).split('\n') if n.strip()]
        return listed_data(root, request.path.resolve(), request.train_list,
                           request.val_list, names)
    return folder_data(root, request.path.resolve(), request.val_share,
                       request.seed, read)


def write_config(request: NewConfig, read: bool = True
                 ) -> tuple[Data, list[Path]]:
    """Write a config, and lists of images where it needs some.

    Args:
        request: What for.
        read: Whether files that cannot be read are refused.

    Returns:
        The data, and the files.

    Raises:
        ValueError: If the data cannot be trained on, or a file is there and
            is not to be written over.
    """
    data = read_data(request, read)
    if request.workers is None:
        request = replace(request, workers=min(os.cpu_count() or 1, 4))
    files = {**data.lists, request.path: config_text(request, data)}
    there = [str(path) for path in files if path.exists()]
    if there and not request.force:
        raise ValueError(f'already there: {shorten(there)}; use force=True to '
                         'write over, or another file.')
    request.path.parent.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
    return data, list(files)


def inert(text: str) -> str:
    """The text of a config in which MMEngine finds no ``{{ }}`` to replace.

    It does so ahead of parsing, in strings and comments alike; in both, a
    brace may be written as its number.
    """
    return text.replace('{{', r'{\x7b')


def literal(value: Any, indent: int) -> str:
    """A value as it stands in a config, one item a line where it is long."""
    text = repr(value)
    if len(text) + indent < 70 or not isinstance(value, (dict, list)):
        return text
    pad = ' ' * (indent + 4)
    if isinstance(value, list):
        lines = [f'{pad}{literal(v, indent + 4)},\n' for v in value]
        return f'[\n{"".join(lines)}{" " * indent}]'
    lines = [f'{pad}{k}={literal(v, indent + 4)},\n'
             for k, v in value.items()]
    return f'dict(\n{"".join(lines)}{" " * indent})'


def config_text(request: NewConfig, data: Data) -> str:
    """The text of the config."""
    recipe = RECIPES[request.recipe]
    about = recipe.about
    batch = max(min(request.batch_size, data.size or request.batch_size), 2)
    epochs = request.epochs or epochs_of(request.recipe, data.size, batch)
    backbone = dict(model_name=request.model, **recipe.backbone)
    comment = ''
    if request.checkpoint:
        backbone['checkpoint_path'] = str(request.checkpoint.resolve())
    elif has_weights(request.model):
        backbone['pretrained'] = True
    else:
        comment = '  # timm has no pretrained weights for this network\n'
    if request.img_size:
        backbone['img_size'] = request.img_size
    if data.in_channels != 3:
        backbone['in_channels'] = data.in_channels
    refuse_undecodable([*backbone.values(), *data.train.values(),
                        *data.val.values(), *(data.test or {}).values(),
                        *data.classes])
    load = "    dict(type='LoadTimmImage'),\n" if data.load else ''
    flip = ', hflip=0.' if data.in_channels == 1 else ''  # digits
    arguments = ''.join(f'        {k}={v!r},\n' for k, v in backbone.items())
    rgb = ('data_preprocessor = dict(to_rgb=False)  # the dataset gives RGB\n'
           if data.rgb else '')
    test_loader = 'val_dataloader' if not data.test else (
        'dict(val_dataloader, dataset=dict(\n    pipeline=test_pipeline, **'
        f'{literal(data.test, 4)}))')
    name = repr(request.model)[1:-1]
    return inert(f"""# {name}, pooled, normalised and classified. {about}
# Widths, mean, std, image size and crop follow from the network: to take
# another one, change model_name, here or on the command line.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['gap_plugin'], allow_failed_imports=False)

model = dict(
    type='TimmFeatureClassifier',
    backbone=dict(
        type='TimmFeatureBackbone',
{comment and '      ' + comment}{arguments}    ),
    neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
    head=dict(type='LinearHead', num_classes={data.count}))
{rgb}
# timm's preprocessing of this network
train_pipeline = [
{load}    dict(type='TimmTrainTransform'{flip}),
    dict(type='PackInputs'),
]
test_pipeline = [
{load}    dict(type='TimmTestTransform'),
    dict(type='PackInputs'),
]

train_dataset = {literal(data.train, 0)}
val_dataset = {literal(data.val, 0)}
train_dataloader = dict(
    batch_size={batch},
    num_workers={request.workers},
    persistent_workers={request.workers > 0},
    drop_last=True,  # BN cannot train on a last batch of one
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **train_dataset))
val_dataloader = dict(
    batch_size={batch},
    num_workers={request.workers},
    persistent_workers={request.workers > 0},
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **val_dataset))
test_dataloader = {test_loader}
val_evaluator = dict(type='Accuracy', topk={(1, 5) if data.count > 9 else (1,)
                                            !r})
test_evaluator = val_evaluator

{optim_wrapper_text(request.recipe, request.from_scratch, data.size, batch)}\
{schedule_text(data.size, batch, epochs)}\
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size={batch})

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2,
        save_best='auto'),
    sync_buffers=dict(type='SyncBuffersHook'),
    binding=dict(type='BindPipelineHook'),
    visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed={request.seed})
""")
