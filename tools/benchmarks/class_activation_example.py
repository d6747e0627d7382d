"""The picture of maps that the documentation shows.

ImageNet's classes on two photos of scikit-image, by the weights that
``tools/model_converters/efficientnet_lite_to_timm.py`` writes.
"""

import argparse

import skimage.data
from mmengine.dataset import Compose
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import nn

from gap_plugin.datasets import bind_pipeline, source_of
from gap_plugin.visualization import Explainer, Panel, as_array, draw_panels

PHOTOS = {'chelsea': 'tiger cat', 'coffee': 'espresso'}


def build(weights: str) -> nn.Module:
    """The classifier of ImageNet that timm has, in parts of MMPretrain."""
    model = MODELS.build(
        dict(
            type='TimmFeatureClassifier',
            backbone=dict(
                type='TimmFeatureBackbone',
                model_name='tf_efficientnet_lite0',
                checkpoint_path=weights,
                out_feature='forward_features'),
            neck=dict(type='GAPNeck'),
            head=dict(type='LinearHead', num_classes=1000)))
    tensors = load_file(weights)
    model.head.fc.load_state_dict({
        name: tensors[f'classifier.{name}'] for name in ('weight', 'bias')})
    return model.eval()


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('weights', help='of tf_efficientnet_lite0')
    parser.add_argument('--out', default='tools/class_activation_example.png')
    args = parser.parse_args()
    model, info = build(args.weights), ImageNetInfo()
    names = [info.index_to_description(i).split(',')[0] for i in range(1000)]
    pipeline = Compose([TRANSFORMS.build(dict(type=kind)) for kind in (
        'TimmTestTransform', 'PackInputs')])
    bind_pipeline(pipeline, source_of(model))
    explainer = Explainer(model, pipeline, names, [
        names.index(name) for name in PHOTOS.values()])
    panels = []
    for photo in PHOTOS:
        image = getattr(skimage.data, photo)()[..., ::-1]  # BGR, as loaded
        found = explainer(dict(img=image, img_path=photo))
        panels.append(Panel(found.image, found.verdict, None,
                            found.location))
        panels += [Panel(found.image, title, each, found.location)
                   for title, each in zip(found.titles, found.maps,
                                          strict=True)]
    figure = draw_panels(panels, 1 + len(PHOTOS))
    # small and in steps of 8, for the sake of the page that shows it
    image = Image.fromarray(as_array(figure)).resize((
        760, round(760 * figure.get_figheight() / figure.get_figwidth())))
    image.point(lambda value: min(8 * round(value / 8), 255)).save(
        args.out, optimize=True)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
