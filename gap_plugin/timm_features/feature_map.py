"""Where a timm network's last map is, and how to read it as NCHW.

timm's contract says what a network *can* be asked (``forward_features``,
``forward_intermediates``, ``feature_info``, ``output_fmt``). What exactly the
answer is, and which parameters take part in it, is found by asking once, on
the meta device, where nothing is computed but shapes and the autograd graph.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_pre_hook

OUT_FEATURES = ('final_conv', 'forward_features', 'pre_logits')

#: Errors by which networks say that they cannot take an input.
INPUT_ERRORS = (AssertionError, IndexError, NotImplementedError, RuntimeError,
                TypeError, ValueError)


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


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
    """

    kind: str
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()
    norm: bool = False
    prefix_tokens: int = 0
    unused_modules: tuple[str, ...] = ()
    unused_parameters: tuple[str, ...] = ()


def read_features(model: nn.Module, x: torch.Tensor,
                  path: FeaturePath) -> tuple[torch.Tensor, ...]:
    """Run a network and give its features.

    Args:
        model: A timm network.
        x: Images ``(N, in_channels, H, W)``.
        path: What :func:`locate` found for this network.

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
    if out_indices is not None:
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
    _take_out_unused(model, path)
    return path


def _levels(model: nn.Module,
            out_indices: int | tuple[int, ...]) -> tuple[int, ...]:
    """Check levels and count the negative ones from the start."""
    names = [level['module'] for level in model.feature_info]
    count = len(names)
    given = (out_indices, ) if isinstance(out_indices, int) else out_indices
    if not isinstance(given, (list, tuple)) or not given or not all(
            isinstance(i, int) and -count <= i < count for i in given):
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
        return _finish(path, trace.read(path), trace)
    if out_feature == 'pre_logits':
        path = FeaturePath('vector')
        return _finish(path, trace.read(path), trace)

    ran = trace.run(model.forward_features)
    if torch.is_tensor(ran.output) and ran.output.ndim == 4:
        nhwc = getattr(model, 'output_fmt', None) == 'NHWC'
        path = FeaturePath('nhwc' if nhwc else 'nchw')
        # the same run serves: NHWC to NCHW changes neither graph nor modules
        y = ran.output.permute(0, 3, 1, 2) if nhwc else ran.output
        return _finish(path, replace(ran, output=(y, )), trace)

    # Tokens or several tensors. forward_intermediates knows the order and
    # the grid of the tokens, so its last map is taken, unless a final norm
    # follows that only forward_features applies.
    level = len(model.feature_info) - 1
    path = FeaturePath('intermediates', indices=(level, ), norm=True)
    inter = trace.try_read(path)
    if inter is None:
        path = replace(path, norm=False)
        inter = trace.try_read(path)
    stride = model.feature_info[level]['reduction']
    if torch.is_tensor(ran.output) and ran.output.ndim == 3:
        h, w = (math.ceil(s / stride) for s in size[1:])
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


@dataclass(frozen=True)
class Run:
    """One traced run: what came out, what took part.

    Attributes:
        output: What the function gave.
        height: Height of the image that it was given.
        live: Names of the parameters that reach the output.
        called: The modules whose forward ran.
    """

    output: Any
    height: int
    live: frozenset[str]
    called: frozenset[nn.Module]


class Trace:
    """Runs functions of a network for their shapes and graph alone.

    Args:
        model: The network. It is left as it is.
        size: ``(C, H, W)`` of the image to run on.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int, int]) -> None:
        self.model = model
        self.size = size

    def run(self, function: Callable) -> Run:
        """Trace ``function(images)``, on the meta device where it can."""
        try:
            return self.run_on_meta(function, self.size)
        except (NotImplementedError, RuntimeError):
            # some networks read values off their tensors, or hold tensors
            # that are neither parameters nor buffers: compute for real, on
            # a small image where the network takes one
            channels, *image = self.size
            small = (channels, *(math.ceil(s / 128) * 32 for s in image))
            try:
                return self._run(function, small, None)
            except INPUT_ERRORS:
                return self._run(function, self.size, None)

    def read(self, path: FeaturePath) -> Run:
        return self.run(lambda x: read_features(self.model, x, path))

    def try_read(self, path: FeaturePath) -> Run | None:
        """As :meth:`read`, None where the meta device or network refuses."""
        try:
            return self.run_on_meta(
                lambda x: read_features(self.model, x, path), self.size)
        except INPUT_ERRORS:
            return None

    def run_on_meta(self, function: Callable,
                    size: tuple[int, int, int]) -> Run:
        return self._run(function, size, 'meta')

    def _run(self, function: Callable, size: tuple[int, int, int],
             device: str | None) -> Run:
        # a trace must leave no mark: parameters and buffers are stand-ins,
        # one per tensor, for some networks share them between modules
        stands: dict[torch.Tensor, torch.Tensor] = {}
        tensors: dict[str, torch.Tensor] = {}
        for name, module in self.model.named_modules():
            for kind in (module._parameters, module._buffers):
                for key, real in kind.items():
                    if real is not None:
                        stand = stands.setdefault(real, _stand_in(real, device))
                        tensors[f'{name}.{key}' if name else key] = stand
        x = next((t for t in tensors.values() if t.is_floating_point()))
        x = torch.zeros(2, *size, device=x.device, dtype=x.dtype)
        called: set[nn.Module] = set()
        hook = register_module_forward_pre_hook(
            lambda module, _: called.add(module))
        training = self.model.training
        self.model.train()  # in eval mode some networks cache tensors
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                output = functional_call(
                    _Call(self.model, function),
                    {f'model.{k}': v
                     for k, v in tensors.items()}, (x, ),
                    tie_weights=False)
        finally:
            hook.remove()
            self.model.train(training)
        leaves = _leaves(output if isinstance(output, (
            list, tuple)) else (output, ))
        live = frozenset(n for n, p in self.model.named_parameters()
                         if id(stands[p]) in leaves)
        return Run(output, size[1], live, frozenset(called))


def _stand_in(real: torch.Tensor, device: str | None) -> torch.Tensor:
    """A tensor like a parameter or buffer, whose change harms nothing."""
    if device is not None:
        stand = torch.empty_like(real, device=device)
    elif isinstance(real, nn.Parameter):
        stand = real.detach()
    else:
        stand = real.clone()
    is_parameter = isinstance(real, nn.Parameter)
    return stand.requires_grad_(is_parameter and real.is_floating_point())


class _Call(nn.Module):
    """A function of a network, as the forward of a module."""

    def __init__(self, model: nn.Module, function: Callable) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def _leaves(outputs: tuple[torch.Tensor, ...]) -> set[int]:
    """Ids of the leaf tensors in the autograd graph of some outputs."""
    leaves, seen = set(), set()
    queue = [y.grad_fn for y in outputs if torch.is_tensor(y)]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            leaves.add(id(node.variable))
        queue.extend(parent for parent, _ in node.next_functions)
    return leaves


def _finish(path: FeaturePath, run: Run, trace: Trace) -> FeaturePath:
    """Add to a path what its run showed."""
    levels = path.indices or (len(trace.model.feature_info) - 1, )
    strides = () if path.kind == 'vector' else tuple(
        _stride(trace.model.feature_info[i]['reduction'], run.height,
                y.shape[-2]) for i, y in zip(levels, run.output))
    modules, parameters = _unused(trace.model, run)
    return replace(
        path,
        channels=tuple(y.shape[1] for y in run.output),
        strides=strides,
        unused_modules=modules,
        unused_parameters=parameters)


def _stride(nominal: int, image: int, positions: int) -> int:
    """timm's stride of a level, or the measured one where that is wrong.

    Convolutions without padding (inception) lose a few positions at the
    border: their nominal stride is right although the map is smaller.
    """
    if abs(image / positions / nominal - 1) < 0.25:
        return nominal
    return round(image / positions)


def _unused(model: nn.Module,
            run: Run) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the modules and, apart, of the parameters to take out."""
    dead = {n for n, _ in model.named_parameters()} - run.live
    modules: list[str] = []
    for name, module in model.named_modules():
        own = [f'{name}.{n}' for n, _ in module.named_parameters()]
        # containers are iterated over as well as called: only what is in them
        # can go
        if (name and own and dead.issuperset(own)
                and not isinstance(module, _CONTAINERS)
                and not f'{name}.'.startswith(tuple(f'{m}.' for m in modules))
                and run.called.isdisjoint(module.modules())):
            modules.append(name)
    prefixes = tuple(f'{m}.' for m in modules)
    return tuple(modules), tuple(
        sorted(n for n in dead if not n.startswith(prefixes)))


def _take_out_unused(model: nn.Module, path: FeaturePath) -> None:
    """Take out of a network what no output needs.

    Modules that never run become identities. Parameters that run, but reach
    no output (the other branches of crossvit, the class token of volo),
    become buffers of the same name, so that plain DDP trains the rest.
    """
    for name in path.unused_modules:
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, nn.Identity())
    for name in path.unused_parameters:
        unused = model.get_parameter(name)
        for module in model.modules():  # several may share it
            for key, parameter in list(module._parameters.items()):
                if parameter is unused:
                    delattr(module, key)
                    module.register_buffer(key, unused.detach())


def refuses(model: nn.Module, path: FeaturePath,
            size: tuple[int, int, int]) -> bool:
    """Whether a network cannot take an image of a size."""
    try:
        with torch.no_grad():
            Trace(model, size).run_on_meta(
                lambda x: read_features(model, x, path), size)
    except INPUT_ERRORS:
        return True
    return False
