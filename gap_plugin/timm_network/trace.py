"""Running a network for its shapes and its autograd graph alone."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

#: Errors by which networks say that they cannot take an input.
INPUT_ERRORS = (ArithmeticError, AssertionError, IndexError, RuntimeError,
                TypeError, ValueError)


@dataclass(frozen=True)
class Run:
    """One traced run: what came out, what took part.

    A part that stands in several places has several names, and all are told.

    Attributes:
        output: What the function gave.
        height: Height of the image that it was given.
        live: Names of the parameters that reach the output.
        called: Names of the modules whose forward ran.
        pairs: Names of a convolution and the norm that its output goes to,
            and to nothing else.
    """

    output: Any
    height: int
    live: frozenset[str]
    called: frozenset[str]
    pairs: frozenset[tuple[str, str]]


class Trace:
    """Runs functions of a network for their shapes and graph alone.

    Args:
        model: The network. It is not touched: a copy runs.
        size: ``(C, H, W)`` of the image to run on.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int, int]) -> None:
        self.model = model
        self.size = size

    def run(self, function: Callable) -> Run:
        """Trace ``function(model, images)``, on meta where it can."""
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
        """Trace ``function(model, images)`` without computing anything."""
        return self._run(function, self.size, 'meta')

    def _run(self, function: Callable, size: tuple[int, int, int],
             device: str | None) -> Run:
        model = _stand_in(self.model, device)
        tensors = (*model.parameters(), *model.buffers())
        kind = next(t for t in tensors if t.is_floating_point())
        x = torch.zeros(2, *size, device=kind.device, dtype=kind.dtype)
        called: set[str] = set()
        for name, module in model.named_modules(remove_duplicate=False):
            module.register_forward_pre_hook(
                lambda *_, name=name: called.add(name))
        made, fed = _watch_pairs(model)
        output = _run_for_shapes(lambda x: function(model, x), x)
        uses = _uses(output if isinstance(output, (
            list, tuple)) else (output, ))
        leaves = {id(node.variable) for node in uses
                  if hasattr(node, 'variable')}
        live = frozenset(
            n for n, p in model.named_parameters(remove_duplicate=False)
            if id(p) in leaves)
        times = Counter(made.values())
        pairs = frozenset(
            (made[node], norm) for norm, (node, *others) in fed.items()
            if not others and times[made.get(node)] == 1 and uses[node] < 2)
        return Run(output, size[1], live, frozenset(called), pairs)


def run_for_shapes(module: nn.Module,
                   inputs: torch.Tensor | tuple[torch.Tensor, ...]) -> Any:
    """What a module gives in training for inputs of some shapes.

    Args:
        module: Any module. It is not touched: a copy runs.
        inputs: Meta tensors.

    Returns:
        Its output, on the meta device, or computed from zeros where that
        cannot run it.

    Raises:
        Exception: What the module raises for such inputs.
    """

    def zeros(device: str) -> Any:
        if torch.is_tensor(inputs):
            return torch.zeros_like(inputs, device=device)
        return tuple(torch.zeros_like(x, device=device) for x in inputs)

    try:
        return _run_for_shapes(_stand_in(module, 'meta'), zeros('meta'))
    except (NotImplementedError, RuntimeError):
        return _run_for_shapes(_stand_in(module, None), zeros('cpu'))


def _run_for_shapes(function: Callable, inputs: Any) -> Any:
    """Call a function of stand-ins with its graph; random states stay."""
    some = inputs if torch.is_tensor(inputs) else inputs[0]
    with (torch.enable_grad(), torch.random.fork_rng(devices=[]),
          _CheapNorms() if some.is_meta else nullcontext()):
        return function(inputs)


def _stand_in(module: nn.Module, device: str | None) -> nn.Module:
    """A copy in training mode whose run changes nothing of the module's.

    Args:
        module: What to copy. Its parameters and buffers are not.
        device: Where the copy has its own; None for those of the module, of
            which buffers are copied, for a run changes them.
    """
    stands: dict[int, Any] = {}
    for real in (*module.parameters(), *module.buffers()):
        if device is not None:
            stand = torch.empty_like(real, device=device)
        elif isinstance(real, nn.Parameter):
            stand = real.detach()
        else:
            stand = real.clone()
        if isinstance(real, nn.Parameter):
            stand = nn.Parameter(stand, real.is_floating_point())
        stands[id(real)] = stand
    twin = copy.deepcopy(module, stands)
    twin.train()  # some of the host's give nothing back
    return twin


def _watch_pairs(model: nn.Module) -> tuple[dict[Any, str], dict[str, list]]:
    """Note what convolutions give and norms take, while a network runs.

    Returns:
        Node of the graph -> name of the convolution that made it; name of a
        norm -> the nodes that it was given.
    """
    made: dict[Any, str] = {}
    fed: dict[str, list] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, args, y, name=name: made.update({y.grad_fn: name}))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _, args, name=name: fed.setdefault(
                    name, []).append(args[0].grad_fn))
    return made, fed


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


def _uses(outputs: tuple[torch.Tensor, ...]) -> Counter:
    """Nodes of the graph of some outputs -> how often each is used."""
    uses: Counter = Counter()
    queue = [y.grad_fn for y in outputs if torch.is_tensor(y)]
    while queue:
        node = queue.pop()
        if node is None:
            continue
        uses[node] += 1
        if uses[node] == 1:
            queue.extend(parent for parent, _ in node.next_functions)
    return uses
