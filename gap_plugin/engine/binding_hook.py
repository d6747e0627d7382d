"""The pipelines of a run make images for its network."""

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from mmpretrain.registry import HOOKS

from ..datasets import bind_pipeline, source_of
from ..timm_network import live_source


@HOOKS.register_module()
class BindPipelineHook(Hook):
    """Binds the transforms of a run to the network of its model.

    Needed where networks of different images are in one process: two
    runners, or a teacher beside its student.
    """

    priority = 'LOW'  # after SwitchRecipeHook, which brings new transforms

    def before_train(self, runner: Runner) -> None:
        """Bind the training images."""
        loop = runner.train_loop
        started = getattr(loop, 'dataloader_iterator', None)
        # a loop of iterations starts its workers as soon as it is built
        early = started is not None and (
            hasattr(runner, 'strategy') or _are_several())
        if self._bind(runner, loop) and early:
            loop.dataloader_iterator = type(started)(loop.dataloader)

    def before_train_epoch(self, runner: Runner) -> None:
        """Bind what has come since."""
        self._bind(runner, runner.train_loop)

    def before_val(self, runner: Runner) -> None:
        """Bind the images of a validation."""
        self._bind(runner, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        """Bind the images of a test."""
        self._bind(runner, runner.test_loop)

    def _bind(self, runner: Runner, loop: BaseLoop) -> bool:
        source = source_of(runner.model)
        loader = getattr(loop, 'dataloader', None)
        if source is None or not bind_pipeline(
                getattr(loader, 'dataset', None), source):
            return False
        if getattr(loader, '_iterator', None) is not None:
            loader._iterator = None  # workers that stay make other images
        return True


def _are_several() -> bool:
    """Whether an unbound transform cannot know its network."""
    try:
        live_source('')
    except ValueError:
        return True
    return False
