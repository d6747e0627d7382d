"""Maps of a test, drawn by MMEngine's visualizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..arguments import check_arguments
from .explaining import Explainer, Explanation, numbers_of
from .gallery import picture


@HOOKS.register_module()
class ClassActivationHook(Hook):
    """Draws where a model sees its classes, on images of a test.

    Pictures are those of :func:`~gap_plugin.visualization.picture`, and go
    to the backends of the runner's visualizer, such as ``LocalVisBackend``.

    Args:
        interval: One of so many images is drawn.
        classes: Names of the classes to show; None for the likeliest, the
            true and an absent one.
        topk: How many of the likeliest ones, without ``classes``.
        up_to_factor: As of :func:`~gap_plugin.visualization.fold`.

    Raises:
        ValueError: At the start of the test, if the model has no exact maps
            or there is no such class.
    """

    def __init__(self, interval: int = 50,
                 classes: Sequence[str] | None = None, topk: int = 1,
                 up_to_factor: bool = False) -> None:
        check_arguments('ClassActivationHook',
                        count=dict(interval=interval, topk=topk),
                        flag=dict(up_to_factor=up_to_factor))
        self.interval = interval
        self.classes = classes
        self.topk = topk
        self.up_to_factor = up_to_factor
        self._explain: Explainer | None = None
        self._count = 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Begin anew."""
        self._explain = None
        self._count = 0

    def before_test_iter(self, runner: Runner, batch_idx: int,
                         data_batch: Any = None) -> None:
        """Fold the model, which is in eval mode by now."""
        if self._explain is not None:
            return
        self._dataset = runner.test_dataloader.dataset
        names = (getattr(self._dataset, 'metainfo', None) or {}).get('classes')
        classes = self.classes
        if classes is not None:
            classes = numbers_of(classes, names)
        self._explain = Explainer(
            runner.model, getattr(self._dataset, 'pipeline', None), names,
            classes, self.topk, self.up_to_factor)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any,
                        outputs: Sequence | None = None) -> None:
        """Draw what is due of a batch."""
        from .drawing import as_array
        for i, sample in enumerate(outputs or ()):
            if self._count % self.interval == 0 and is_main_process():
                found = self._explained(data_batch['inputs'][i], sample)
                runner.visualizer.add_image(
                    Path(found.name).stem, as_array(picture(found)),
                    step=self._count)
            self._count += 1

    def _explained(self, inputs: Any, sample: Any) -> Explanation:
        row = sample.get('sample_idx')
        if isinstance(self._dataset, BaseDataset) and row is not None:
            return self._explain(self._dataset.get_data_info(row))
        return self._explain.of_input(
            dict(inputs=inputs, data_samples=sample.clone()),
            f'drawn on the input: {type(self._dataset).__name__} does not '
            'tell the file')
