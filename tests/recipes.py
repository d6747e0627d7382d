"""The configs that come with the package."""

from mmengine.config import Config

from commands import ROOT

CONFIGS = ROOT / 'configs'
#: All that people name.
LEAVES = sorted(
    str(p.relative_to(CONFIGS)) for p in CONFIGS.glob('*/*.py')
    if p.parent.name != '_base_')
#: Ways of training, run in test_recipes.py.
RECIPES = [
    leaf for leaf in LEAVES
    if not leaf.startswith(('imagenet/', 'image_folder/', 'digits/',
                            'fsdp/', 'deepspeed/'))
]


def read(leaf):
    return Config.fromfile(str(CONFIGS / leaf))
