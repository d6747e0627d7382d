"""What a written config trains with: rates, epochs, warm-up."""

import math
from dataclasses import dataclass

#: Steps that the fine-tuning of few images takes; see configs/README.md.
STEPS = 500

#: Epochs at most, however few images there are.
MOST = 100


@dataclass(frozen=True)
class Recipe:
    """A way of training.

    Attributes:
        about: What it is, in a sentence.
        epochs: At least, of however many images.
        backbone: Arguments of the backbone.
    """

    about: str
    epochs: int
    backbone: dict[str, object]


RECIPES = {
    'linear': Recipe(
        'The backbone is frozen, BN and the linear layer are trained.', 20,
        dict(frozen_stages='all')),
    'finetune': Recipe('All layers are trained.', 10, {}),
}

#: Of a backbone that is trained; one without weights has nothing to spoil.
_RATE, _RATE_FROM_SCRATCH = 3e-4, 1e-3


def epochs_of(recipe: str, images: int | None, batch: int) -> int:
    """How many epochs a recipe trains.

    As many as give :data:`STEPS`, of few images; those of the recipe, of
    many, or where their number is not known.

    Args:
        recipe: Key of :data:`RECIPES`.
        images: Number of training images; None if not known.
        batch: Images a step.
    """
    least = RECIPES[recipe].epochs
    if images is None:
        return least
    return max(least, min(math.ceil(STEPS / _steps(images, batch)), MOST))


def _steps(images: int, batch: int) -> int:
    """Steps of an epoch, whose last images are left out."""
    return max(images // batch, 1)


def warm_up(images: int | None, batch: int, epochs: int) -> int:
    """Steps of warm-up: a tenth of all, 500 at most.

    Args:
        images: Number of training images; None if not known: then many.
        batch: Images a step.
        epochs: How many.

    Returns:
        0 where the training is too short for any.
    """
    most = 500
    if images is not None:
        most = min(_steps(images, batch) * epochs // 10, most)
    return most if most > 1 else 0  # MMEngine's takes two steps at least


def on_frozen(images: int | None, batch: int) -> dict[str, float]:
    """Rate and decay of neck and head on a frozen network of 1280 features.

    What was right for the steps of 1440 images holds up to there; with more,
    the decay falls as one over their square root, as that of AdamW does in
    https://arxiv.org/abs/1711.05101. See configs/README.md.

    Args:
        images: Number of training images; None if not known: then as many
            as give 500 steps an epoch.
        batch: Images a step.
    """
    steps = _steps(images or 500 * batch, batch)
    decay = min(math.sqrt(45 / steps), 1.)
    return dict(lr=1e-3, weight_decay=float(f'{decay:.2g}'), width=1280)


def optim_wrapper_text(recipe: str, scratch: bool, images: int | None,
                       batch: int) -> str:
    """The optimiser of a config, as it is written.

    Args:
        recipe: Key of :data:`RECIPES`.
        scratch: Whether the network has no weights: none is ahead.
        images: Number of training images; None if not known.
        batch: Images a step.
    """
    if scratch and not RECIPES[recipe].backbone:
        rate, paramwise = _RATE_FROM_SCRATCH, ''
    else:
        frozen = ', '.join(f'{key}={value}' for key, value in on_frozen(
            images, batch).items())
        rate, paramwise = _RATE, f"""\
    constructor='FinetuneOptimWrapperConstructor',
    # Neck and head are new, and ahead of the backbone; of a transformer, the
    # blocks near the image are slower than those near the head. On a frozen
    # network, rate and decay are those of frozen, and follow its width.
    paramwise_cfg=dict(
        head_lr_mult=10., layer_decay_rate='auto', flat_decay_mult=0.,
        frozen=dict({frozen})),
"""
    return f"""optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr={rate}, weight_decay=0.05),
{paramwise}    clip_grad=dict(max_norm=5.0))
"""


def schedule_text(images: int | None, batch: int, epochs: int) -> str:
    """The schedule of a config, as it is written: warm-up times cosine.

    Args:
        images: Number of training images; None if not known.
        batch: Images a step.
        epochs: How many.
    """
    steps = warm_up(images, batch, epochs)
    ahead = f"""    # steps
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end={steps}),
""" if steps else ''
    return f"""param_scheduler = [
{ahead}    # up to the last epoch
    dict(type='CosineAnnealingLR', convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval=1)
"""
