"""Where a timm network's last map is, and how to read it as NCHW.

timm's contract says what a network *can* be asked (``forward_features``,
``forward_intermediates``, ``feature_info``, ``output_fmt``). What exactly the
answer is, and which parameters take part in it, is found by asking once, on
the meta device, where nothing is computed but shapes and the autograd graph.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.fx
from torch import nn

from .create import newer_timm
from .trace import INPUT_ERRORS, Run, Trace
from .unused import find_unused, take_out

OUT_FEATURES = ('final_conv', 'forward_features', 'pre_logits')


@dataclass(frozen=True)
class FeaturePath:
    """How the features of one network are read, and what they are.

    Attributes:
        kind: ``'nchw'``, ``'nhwc'`` or ``'tokens'``: what
            ``forward_features`` gives; ``'intermediates'``: the maps come
            from ``forward_intermediates``; ``'vector'``: from
            ``forward_head``.
        channels: Width of each output.
        strides: Input pixels per position of each output.
        indices: Levels of ``feature_info``, for ``'intermediates'``.
        norm: Whether the final norm is applied to ``'intermediates'``.
        prefix_tokens: Class and register tokens ahead of the map's.
        unused_modules: Modules that no output needs and no forward runs.
        unused_parameters: Parameters that run, but reach no output.
        pairs: A convolution and the norm that alone takes its output.
    """

    kind: str
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()
    norm: bool = False
    prefix_tokens: int = 0
    unused_modules: tuple[str, ...] = ()
    unused_parameters: tuple[str, ...] = ()
    pairs: frozenset[tuple[str, str]] = frozenset()


def read_features(model: nn.Module, x: torch.Tensor,
                  path: FeaturePath) -> tuple[torch.Tensor, ...]:
    """Run a network and give its features.

    Args:
        model: A timm network.
        x: Images ``(N, in_channels, H, W)``.
        path: What :func:`prepare` found for this network.

    Returns:
        Maps ``(N, C_i, h_i, w_i)``, contiguous; ``(N, C)`` for a vector.
    """
    if path.kind == 'intermediates':
        maps = model.forward_intermediates(
            x,
            indices=list(path.indices),
            norm=path.norm,
            stop_early=True,
            output_fmt='NCHW',
            intermediates_only=True)
        return tuple(y.contiguous() for y in maps)
    y = model.forward_features(x)
    if path.kind == 'vector':
        return (model.forward_head(y, pre_logits=True), )
    if path.kind == 'nhwc':
        y = y.permute(0, 3, 1, 2)
    elif path.kind == 'tokens':
        y = y[:, path.prefix_tokens:]
        h, w = _grid(y.shape[1], x.shape[-2:], path.strides[0])
        y = y.transpose(1, 2).unflatten(2, (h, w))
    return (y.contiguous(), )


@torch.fx.wrap  # one node of a graph: it branches by numbers
def _grid(tokens: int, size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of ``tokens`` positions on an image of ``size``."""
    for rounding in (math.floor, math.ceil):
        h, w = (rounding(s / stride) for s in size)
        if h * w == tokens:
            return h, w
    raise ValueError(
        f'{tokens} tokens are no grid of stride {stride} on an image of '
        f'{size[0]} x {size[1]}: token dropping has to be off, '
        "out_feature='pre_logits' works with it on.")


def prepare(model: nn.Module, out_feature: str,
            out_indices: int | tuple[int, ...] | None,
            size: tuple[int, int, int], key: tuple) -> FeaturePath:
    """Make a network ready to give features, and find out how to read them.

    The final activation behind ``final_conv`` and all that cannot reach the
    output are taken out of the network.

    Args:
        model: A timm network without classifier, changed in place.
        out_feature: One of :data:`OUT_FEATURES`.
        out_indices: Levels of ``feature_info``, or None.
        size: ``(C, H, W)`` of an image that the network takes.
        key: What its structure depends on. Networks with the same key are
            traced once in a process.

    Returns:
        The path for :func:`read_features`.

    Raises:
        ValueError: If there is no such output or level.
    """
    if out_feature not in OUT_FEATURES:
        raise ValueError(f'out_feature must be one of {OUT_FEATURES}, got '
                         f'{out_feature!r}.')
    _has(model, 'feature_info')
    if out_indices is not None:
        _has(model, 'forward_intermediates')
        if out_feature != 'final_conv':
            raise ValueError(
                f'out_feature={out_feature!r} names one output and '
                f'out_indices={out_indices!r} several: give one of the two.')
        out_indices = _levels(model, out_indices)
    elif (out_feature == 'final_conv' and hasattr(model, 'final_conv')
          and hasattr(model, 'final_act')):
        # NFNets apply final_act behind it. Taking that off the path, rather
        # than keeping what a hook saw, cannot be undone by an activation
        # that works in place.
        model.final_act = nn.Identity()
    key = (key, out_feature, out_indices, size)
    if key not in _PATHS:
        _PATHS[key] = _locate(model, out_feature, out_indices, size)
    path = _PATHS[key]
    take_out(model, path.unused_modules, path.unused_parameters)
    return path


def _has(model: nn.Module, part: str) -> None:
    """Refuse a network that this timm gives less to work with.

    Raises:
        ValueError: If it lacks what says where its maps are.
    """
    if not hasattr(model, part):
        raise ValueError(
            f'{type(model).__name__} has no {part} in this timm, which says '
            f'where its maps are: {newer_timm()}.')


def _levels(model: nn.Module,
            out_indices: int | tuple[int, ...]) -> tuple[int, ...]:
    """Check levels and count the negative ones from the start."""
    names = [level['module'] for level in model.feature_info]
    count = len(names)
    given = (out_indices, ) if isinstance(out_indices, int) else out_indices
    if not isinstance(given, (list, tuple)) or not given or not all(
            type(i) is int and -count <= i < count for i in given):
        shown = names if count < 9 else names[:3] + ['...'] + names[-2:]
        raise ValueError(
            f'out_indices={out_indices!r}: allowed are integers from '
            f'{-count} to {count - 1}, the levels {", ".join(shown)}.')
    levels = tuple(i % count for i in given)
    if sorted(set(levels)) != list(levels):
        raise ValueError(f'out_indices={out_indices!r} must rise, each level '
                         'once: timm gives them in that order.')
    return levels


_PATHS: dict[tuple, FeaturePath] = {}


def _locate(model: nn.Module, out_feature: str,
            out_indices: tuple[int, ...] | None,
            size: tuple[int, int, int]) -> FeaturePath:
    trace = Trace(model, size)
    if out_indices is not None:
        path = FeaturePath('intermediates', indices=out_indices)
        return _finish(path, _read(trace, path), trace)
    if out_feature == 'pre_logits':
        path = FeaturePath('vector')
        return _finish(path, _read(trace, path), trace)

    ran = trace.run(lambda model, x: model.forward_features(x))
    if torch.is_tensor(ran.output) and ran.output.ndim == 4:
        nhwc = getattr(model, 'output_fmt', None) == 'NHWC'
        path = FeaturePath('nhwc' if nhwc else 'nchw')
        # the same run serves: NHWC to NCHW changes neither graph nor modules
        y = ran.output.permute(0, 3, 1, 2) if nhwc else ran.output
        return _finish(path, replace(ran, output=(y, )), trace)

    _has(model, 'forward_intermediates')
    # Tokens or several tensors. forward_intermediates knows the order and
    # the grid of the tokens, so its last map is taken, unless a final norm
    # follows that only forward_features applies.
    level = len(model.feature_info) - 1
    path = FeaturePath('intermediates', indices=(level, ), norm=True)
    inter = _try_read(trace, path)
    if inter is None:
        path = replace(path, norm=False)
        inter = _try_read(trace, path)
    stride = model.feature_info[level]['reduction']
    if torch.is_tensor(ran.output) and ran.output.ndim == 3:
        shrunk = ran.height / size[1]  # of a run that was for real
        h, w = (math.ceil(s * shrunk / stride) for s in size[1:])
        if inter is not None:
            h, w = inter.output[0].shape[-2:]
        prefix = ran.output.shape[1] - h * w
        if prefix >= 0 and (inter is None or ran.live - inter.live):
            path = FeaturePath(
                'tokens', strides=(stride, ), prefix_tokens=prefix)
            y = ran.output[:, prefix:].transpose(1, 2).unflatten(2, (h, w))
            return _finish(path, replace(ran, output=(y, )), trace)
    if inter is None:
        raise ValueError(
            f'{type(model).__name__} gives no map: neither its '
            'forward_features nor its forward_intermediates has one.')
    return _finish(path, inter, trace)


def _read(trace: Trace, path: FeaturePath) -> Run:
    """Trace :func:`read_features`."""
    return trace.run(lambda model, x: read_features(model, x, path))


def _try_read(trace: Trace, path: FeaturePath) -> Run | None:
    """As :func:`_read`, None where the meta device or network refuses."""
    try:
        return trace.run_on_meta(
            lambda model, x: read_features(model, x, path))
    except INPUT_ERRORS:
        return None


def _finish(path: FeaturePath, run: Run, trace: Trace) -> FeaturePath:
    """Add to a path what its run showed."""
    levels = path.indices or (len(trace.model.feature_info) - 1, )
    if path.kind == 'intermediates':
        for i, y in zip(levels, run.output, strict=True):
            info = trace.model.feature_info[i]
            if y.shape[1] not in (info['num_chs'], info.get('num_chs_norm')):
                raise ValueError(
                    f'{type(trace.model).__name__} gives {y.shape[1]} '
                    f"channels in place of {info['num_chs']}: tokens that "
                    'are dropped (patch_drop_rate) leave no map; use '
                    "out_feature='pre_logits'.")
    strides = () if path.kind == 'vector' else tuple(
        _stride(trace.model.feature_info[i]['reduction'], run.height,
                y.shape[-2]) for i, y in zip(
            levels, run.output, strict=True))
    modules, parameters = find_unused(trace.model, run)
    return replace(
        path,
        channels=tuple(y.shape[1] for y in run.output),
        strides=strides,
        unused_modules=modules,
        unused_parameters=parameters,
        pairs=run.pairs)


def _stride(nominal: int, image: int, positions: int) -> int:
    """Timm's stride of a level, or the measured one where that is wrong.

    Convolutions without padding (inception) lose a few positions at the
    border: their nominal stride is right although the map is smaller.
    """
    if abs(image / positions / nominal - 1) < 0.25:
        return nominal
    return round(image / positions)
