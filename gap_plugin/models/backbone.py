"""Any timm network as an MMPretrain backbone."""

from contextlib import nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from timm.utils.model import reparameterize_model

from ..arguments import check_arguments
from ..timm_network import (
    INPUT_ERRORS,
    DataSource,
    NetworkSpec,
    check_size,
    freeze,
    image_size,
    layer_depths,
    pair,
    prepared,
    read_features,
    remember,
    size_refused,
    tune_part,
)
from .checks import is_exporting
from .norm_repair import NormConversions
from .stored_weights import StoredWeights


@MODELS.register_module()
class TimmFeatureBackbone(BaseModule):
    """A timm network that hands on its last feature map.

    The network is built by ``timm.create_model`` without its classifier and
    stands in the attribute ``timm_model``. Whatever it gives (NCHW, NHWC,
    tokens, lists), the output is ``(N, C, h, w)``. What cannot reach the
    output is taken out of it, so that plain DDP trains every network.

    Args:
        model_name: Any name that ``timm.create_model`` takes, with or
            without a weights tag; ``hf-hub:`` and ``local-dir:`` too.
        pretrained: Whether to load timm's own weights, from the hub or its
            cache.
        checkpoint_path: A local file of weights under timm's names
            (``.safetensors``, ``.pth``, ``.bin``, ``.npz``, ``.ckpt``),
            whatever stands ahead of them, or a checkpoint of MMPretrain; a
            classifier in it is left out.
        checkpoint_key: With which names those weights begin, where a file has
            several, such as ``'student'``; None for those that fit best.
        in_channels: Channels of the image; timm adapts the weights of the
            stem.
        out_feature: ``'final_conv'``: the output of the network's
            ``final_conv`` where it has one (before the final activation of
            an NFNet), else as ``'forward_features'``: timm's last map, after
            the final activation or norm, what the pretrained classifier saw.
            ``'pre_logits'``: ``(N, C)`` after timm's own pooling and head
            layers.
        out_indices: Levels of timm's ``feature_info`` to give in place of
            the last map, for FPN-style necks; negative ones count from the
            end. ``out_feature`` is left at its default then.
        frozen_stages: -1: nothing; 0: the stem; k: stem and first k stages
            (by timm's ``group_matcher``); ``'all'``: everything. Frozen
            parts stay in eval mode and run without autograd.
        tune: What of the rest is trained: ``'all'``, or
            ``'bias_and_norm'``, biases and norm layers alone (BitFit).
        norm_eval: Whether norm layers keep their running statistics.
        with_cp: Whether to use timm's gradient checkpointing.
        channels_last: Whether weights and images lie in memory as NHWC, which
            convolutions on recent machines are faster with.
        deploy: Whether the training branches are merged, for weights that
            ``switch_to_deploy`` or MMPretrain's ``reparameterize_model.py``
            has merged, or that the arguments above give.
        img_size: Side, or height and width, of the image that the network
            is built for; None for its own. timm resamples what depends on it.
        timm_kwargs: Further arguments of ``timm.create_model``.
        init_cfg: Config of MMEngine's weight initialisation. Never overwrites
            weights that the arguments above have loaded.

    Attributes:
        timm_model (nn.Module): The network.
        out_indices (tuple[int]): Levels of the outputs, -1 for the last map.
        out_channels (tuple[int]): Width of each output.
        out_strides (tuple[int]): Input pixels per position of each output, on
            an image of ``image_size``: a few networks (mobilenetv5) have as
            many positions at every size. Empty for ``'pre_logits'``.
        image_size (tuple[int]): Height and width that it is built for.
        pretrained_cfg (dict): timm's description of the weights.
        data_source (DataSource): What its preprocessing follows from.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name, level or stage does not exist, an argument is
            not taken by the network, or weights do not fit.
        ConnectionError: If the weights hub is needed and does not answer.
        FileNotFoundError: If there is no ``checkpoint_path``.
    """

    def __init__(self,
                 model_name: str,
                 *,
                 pretrained: bool = False,
                 checkpoint_path: str | None = None,
                 checkpoint_key: str | None = None,
                 in_channels: int = 3,
                 out_feature: str = 'final_conv',
                 out_indices: int | tuple[int, ...] | None = None,
                 frozen_stages: int | str = -1,
                 tune: str = 'all',
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 channels_last: bool = False,
                 deploy: bool = False,
                 img_size: int | tuple[int, int] | None = None,
                 timm_kwargs: dict[str, Any] | None = None,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        check_arguments(
            'TimmFeatureBackbone',
            path_or_none=dict(checkpoint_path=checkpoint_path),
            text_or_none=dict(checkpoint_key=checkpoint_key),
            flag=dict(norm_eval=norm_eval, with_cp=with_cp, deploy=deploy,
                      channels_last=channels_last),
            settings_or_none=dict(timm_kwargs=timm_kwargs),
            configs_or_none=dict(init_cfg=init_cfg))
        if type(out_indices) is int:  # as MMPretrain's backbones take it
            out_indices = (out_indices, )
        if img_size is not None:
            check_size(img_size)
            img_size = pair(img_size)
        spec = NetworkSpec(model_name, pretrained, checkpoint_path,
                           in_channels, img_size, timm_kwargs or {},
                           checkpoint_key)
        model, loading, self._path = prepared(spec, out_feature, out_indices)
        for line in loading.lines() if loading is not None else ():
            print_log(line, logger='current')
        self.model_name = model_name
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.tune = tune
        self.norm_eval = norm_eval
        self.pretrained_cfg = model.pretrained_cfg
        self.image_size = image_size(spec, model)
        self.data_source = DataSource(model_name, model.pretrained_cfg,
                                      img_size, in_channels)
        # of the last map: MMPretrain's tools ask for it
        self.out_indices = (-1, ) if out_indices is None else tuple(
            out_indices)
        # for MMPretrain's vis_cam.py --vit-like
        self.num_extra_tokens = getattr(model, 'num_prefix_tokens', 0)
        self.out_channels = self._path.channels
        self.out_strides = self._path.strides
        if deploy:
            reparameterize_model(model.eval(), inplace=True)
        for module in model.modules():  # ClassNumCheckHook would see them
            module.__dict__.pop('num_classes', None)
        self.channels_last = channels_last
        if channels_last:
            for value in (*model.parameters(), *model.buffers()):
                if value.ndim == 4:
                    value.data = value.data.contiguous(
                        memory_format=torch.channels_last)
        model.is_init = True  # timm has: MMEngine is not to do it again
        self.timm_model = model

        self._converted = NormConversions(
            model, model_name, self._path.pairs)
        self._depths: dict[str, int] | None = None
        self._frozen_modules = freeze(model, frozen_stages)
        tune_part(model, tune)
        if with_cp:
            try:
                model.set_grad_checkpointing(True)
            except AssertionError:
                raise ValueError(
                    f'with_cp=True: {model_name!r} has no gradient '
                    'checkpointing in timm; use with_cp=False.') from None
        self.train(self.training)

        self.has_weights = pretrained or checkpoint_path is not None
        self.stored = StoredWeights(self, spec, self._path)
        remember(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        remember(self)  # a copy may outlive what it was made from

    def __call__(self, x: torch.Tensor, *args: Any,
                 **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """Run the network; what it cannot take is said in one line.

        Around :meth:`forward`, for that is traced, and has no branches then.

        Args:
            x: Images ``(N, in_channels, H, W)``, normalised as
                ``pretrained_cfg`` says.
            *args: For a subclass whose ``forward`` takes more.
            **kwargs: As ``args``.

        Returns:
            Maps ``(N, C_i, h_i, w_i)``, contiguous; ``((N, C), )`` for
            ``out_feature='pre_logits'``.

        Raises:
            ValueError: If the input has another rank or channel count, or a
                size that the network cannot take.
        """
        if isinstance(x, torch.Tensor) and (
                x.ndim != 4 or x.shape[1] != self.in_channels):
            raise ValueError(
                f'{self.model_name!r} takes images (N, {self.in_channels}, '
                f'H, W), got a tensor of shape {tuple(x.shape)}; in_channels '
                'of the backbone sets the channel count.')
        try:
            return super().__call__(x, *args, **kwargs)
        except INPUT_ERRORS as error:
            if is_exporting() or not isinstance(x, torch.Tensor):
                raise
            refused = size_refused(error, self.model_name, x.shape[2:],
                                   self.image_size)
            if not refused:
                raise
            raise refused from error

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network, without a look at the images."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        self._converted.mend()
        with torch.no_grad() if self.frozen_stages == 'all' else (
                nullcontext()):
            return read_features(self.timm_model, x, self._path)

    def train(self, mode: bool = True) -> 'TimmFeatureBackbone':
        """Switch to training, except for what is frozen."""
        super().train(mode)
        if mode:
            for name in self._frozen_modules:
                self.timm_model.get_submodule(name).eval()
            if self.norm_eval:
                for module in self.timm_model.modules():
                    # BN of torch and timm, InstanceNorm, EvoNorm, ...
                    if 'running_var' in module._buffers:
                        module.eval()
        return self

    def init_weights(self) -> None:
        """Apply ``init_cfg``, unless weights have been loaded."""
        if not self.has_weights:
            super().init_weights()

    def get_layer_depth(self,
                        param_name: str,
                        prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning rates.

        Args:
            param_name: Full name of the parameter.
            prefix: What stands ahead of this backbone's own names.

        Returns:
            Depth (0 is the stem) and the number of depths. A parameter
            outside of the backbone is as deep as can be.
        """
        if self._depths is None:
            self._depths = layer_depths(self.timm_model)
        depths = self._depths
        count = max(depths.values(), default=0) + 2
        name = param_name.removeprefix(f'{prefix}timm_model.')
        if not param_name.startswith(prefix) or name not in depths:
            return count - 1, count
        return depths[name], count

    def switch_to_deploy(self) -> None:
        """Merge the branches that training alone needs (RepVGG and others).

        In eval mode the output stays the same. Networks without such branches
        are left as they are. Source: ``reparameterize_model`` of timm.
        """
        reparameterize_model(self.timm_model, inplace=True)
        self._converted = NormConversions(
            self.timm_model, self.model_name, self._path.pairs)
        self._depths = None
        # what has been merged is new
        self._frozen_modules = freeze(self.timm_model, self.frozen_stages)
        tune_part(self.timm_model, self.tune)

    def apply(self, fn: Any) -> 'TimmFeatureBackbone':
        """As ``nn.Module.apply``, but loaded weights are left alone.

        A ``init_cfg`` of the classifier reaches every layer below it by
        ``apply``: it must not undo a load.
        """
        host_init = getattr(fn, '__module__', '') == (
            'mmengine.model.weight_init')
        if host_init and self.has_weights:
            return self
        return super().apply(fn)
