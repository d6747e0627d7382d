"""Running a network for its shapes and its autograd graph alone."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

#: Errors by which networks say that they cannot take an input.
INPUT_ERRORS = (AssertionError, IndexError, NotImplementedError, RuntimeError,
                TypeError, ValueError)


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
            return self.run_on_meta(function)
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

    def run_on_meta(self, function: Callable) -> Run:
        """Trace ``function(images)`` without computing anything."""
        return self._run(function, self.size, 'meta')

    def _run(self, function: Callable, size: tuple[int, int, int],
             device: str | None) -> Run:
        called: set[nn.Module] = set()
        hook = register_module_forward_pre_hook(
            lambda module, _: called.add(module))
        try:
            output, stands = _on_stand_ins(self.model, function, size, device)
        finally:
            hook.remove()
        leaves = _leaves(output if isinstance(output, (
            list, tuple)) else (output, ))
        live = frozenset(n for n, p in self.model.named_parameters()
                         if id(stands[p]) in leaves)
        return Run(output, size[1], live, frozenset(called))


def run_for_shapes(module: nn.Module,
          inputs: torch.Tensor | tuple[torch.Tensor, ...]) -> Any:
    """What a module gives in training for inputs of some shapes.

    Args:
        module: Any module. It is left as it is.
        inputs: Meta tensors.

    Returns:
        Its output, on the meta device, or computed from zeros where that
        cannot run it.

    Raises:
        Exception: What the module raises for such inputs.
    """

    def zeros(device: str | None) -> Any:
        if torch.is_tensor(inputs):
            return torch.zeros_like(inputs, device=device)
        return tuple(torch.zeros_like(x, device=device) for x in inputs)

    try:
        return _on_stand_ins(module, module, zeros('meta'), 'meta')[0]
    except (NotImplementedError, RuntimeError):
        return _on_stand_ins(module, module, zeros('cpu'), None)[0]


def _on_stand_ins(
        model: nn.Module, function: Callable, inputs: Any,
        device: str | None) -> tuple[Any, dict[torch.Tensor, torch.Tensor]]:
    """Run a function of a network in training mode, and leave no mark.

    Args:
        model: The network.
        function: Of the inputs.
        inputs: What to give it; ``(C, H, W)`` for two blank images.
        device: Where; None for that of the network.

    Returns:
        The output, and parameter or buffer -> its stand-in: one per tensor,
        for some networks share them between modules.
    """
    stands: dict[torch.Tensor, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        for kind in (module._parameters, module._buffers):
            for key, real in kind.items():
                if real is None:
                    continue
                if real not in stands:
                    stands[real] = _stand_in(real, device)
                full = f'{name}.{key}' if name else key
                tensors[full] = stands[real]
    if isinstance(inputs, tuple) and isinstance(inputs[0], int):
        x = next(t for t in tensors.values() if t.is_floating_point())
        inputs = torch.zeros(2, *inputs, device=x.device, dtype=x.dtype)
    modes = {module: module.training for module in model.modules()}
    model.train()  # in eval mode some networks cache tensors
    try:
        with (torch.enable_grad(), torch.random.fork_rng(devices=[]),
              _CheapNorms() if device == 'meta' else nullcontext()):
            output = functional_call(
                _Call(model, function),
                {f'model.{k}': v
                 for k, v in tensors.items()}, (inputs, ),
                tie_weights=False)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return output, stands


class _SameShape(torch.autograd.Function):
    """Something of the first tensor's shape that depends on all."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor,
                *others: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)


class _CheapNorms(TorchFunctionMode):
    """Norms as one node of the graph each.

    On the meta device they are decomposed into dozens of operations in
    Python, which would take most of the time of a trace.
    """

    _NORMS = (functional.batch_norm, functional.group_norm,
              functional.layer_norm)

    def __torch_function__(self, func: Callable, types: Any,
                           args: tuple = (), kwargs: dict | None = None
                           ) -> Any:
        kwargs = kwargs or {}
        if func in self._NORMS:
            return _SameShape.apply(*filter(
                torch.is_tensor, (*args, *kwargs.values())))
        return func(*args, **kwargs)


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
