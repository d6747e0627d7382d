"""What runs a network over many images: the fastest that gives the same."""

import io
import logging
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, redirect_stderr

import torch
from torch import Tensor, nn

from ..engine.device import autocast
from ..messages import first_line

#: What :func:`fastest` can be asked for.
ENGINES = ('auto', 'torch', 'compile', 'onnxruntime')
#: Largest difference from eager torch, relative to the largest output.
TOLERANCE = 1e-4
#: Images of the first batch that engines are compared and timed on; a batch
#: of onnxruntime.
COMPARED = 16
#: Seconds that torch must need for all images for an export to be tried. It
#: takes about 5 s on idle cores, and saves from nothing to three quarters.
EXPORT_PAYS = 20.
#: Images from which on a GPU makes good for the minute that compiling takes.
COMPILING_PAYS = 500_000


class Engine:
    """A network as something runs it.

    Attributes:
        name (str): What runs it, for people and descriptions: ``'torch'``,
            ``'torch channels_last'``, ``'compile'``,
            ``'onnxruntime 1.32.0'``.
    """

    def __init__(self, name: str, run: Callable[[Tensor], Tensor]) -> None:
        self.name, self._run = name, run

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Outputs of a batch.

        Args:
            images: ``(N, C, H, W)``, preprocessed, of any number N.

        Returns:
            ``(N, D)``, float32, on the device of the images or on the CPU.
        """
        return self._run(images).float()


def fastest(module: nn.Module, images: Tensor, *, engine: str = 'auto',
            amp: bool = False, count: int | None = None) -> Engine:
    """The fastest engine that gives what eager torch gives.

    Args:
        module: Takes preprocessed images ``(N, C, H, W)``, gives ``(N, D)``.
            It is put into eval mode and otherwise left as it is.
        images: The first batch.
        engine: One of :data:`ENGINES`. ``'auto'`` is channels-last; on a CPU
            onnxruntime, where it is installed, there are enough images, and
            it turns out to be faster; on a GPU compiled for very many.
        amp: Whether to run under autocast; not by onnxruntime.
        count: Number of images that there will be, None for very many.

    Returns:
        The engine. Under ``'auto'``, the next best takes the place of what
        fails or differs by more than :data:`TOLERANCE`, with a warning.

    Raises:
        ValueError: If a named engine cannot run the network, or gives
            something else.
        ImportError: If a named engine is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f'engine={engine!r} must be one of '
                         f'{", ".join(ENGINES)}.')
    module.eval()
    eager = Engine('torch', _mixed(module, images.device, amp))
    if engine == 'torch':
        return eager
    few = images[:COMPARED]
    wanted = eager(few)

    def made(kind: str, otherwise: Engine = eager) -> Engine:
        try:
            found = _MAKERS[kind](module, few, amp)
            differs = _difference(found(few), wanted)
            allowed = _allowed(module, few, wanted, amp)
            if not differs <= allowed:
                raise ValueError(
                    f'its outputs differ from those of eager torch by '
                    f'{differs:.1e} of the largest, {allowed:.1e} is allowed')
        except Exception as error:  # noqa: BLE001 exporters raise all kinds
            why = (f'{kind} does not run this network: '
                   f'{first_line(error)[:200]}')
            if engine == 'auto':
                warnings.warn(f'{why}; {otherwise.name} runs it.',
                              stacklevel=3)
                return otherwise
            if isinstance(error, ImportError):
                raise
            raise ValueError(f"{why}; use engine='torch' or 'auto'.") from None
        return found

    if engine != 'auto':
        return made(engine)
    many = float('inf') if count is None else count
    if images.device.type == 'cuda' and many >= COMPILING_PAYS:
        return made('compile', made('channels_last'))
    found = made('channels_last')
    if (images.device.type == 'cpu' and not amp and _installed()
            and many * _seconds(found, few) / len(few) >= EXPORT_PAYS):
        exported = made('onnxruntime', found)
        if (exported is not found  # in turn: decoders were busy before
                and _seconds(exported, few) < _seconds(found, few)):
            return exported
    return found


def is_of(name: str, asked: str) -> bool:
    """Whether an engine of some name is what was asked for."""
    return all(asked in ('auto', one) or (asked != 'torch'
                                          and one.startswith(asked))
               for one in name.split(', '))  # several processes, or runs


def _seconds(engine: Engine, images: Tensor) -> float:
    """What a batch takes, which is not the first one."""
    start = time.perf_counter()
    engine(images)
    return time.perf_counter() - start


def _installed() -> bool:
    from importlib.util import find_spec
    return all(map(find_spec, ('onnx', 'onnxscript', 'onnxruntime')))


def _mixed(run: Callable[[Tensor], Tensor], device: torch.device,
           amp: bool) -> Callable[[Tensor], Tensor]:
    def mixed(images: Tensor) -> Tensor:
        with autocast(device, amp):
            return run(images)
    return mixed


def _channels_last(module: nn.Module, images: Tensor, amp: bool,
                   name: str = 'torch channels_last',
                   wrap: Callable = lambda run: run) -> Engine:
    """Weights and images in channels-last; the module stays as it is."""
    ordered = {
        name: tensor.detach().contiguous(memory_format=torch.channels_last)
        for name, tensor in module.named_parameters() if tensor.ndim == 4}

    def run(images: Tensor) -> Tensor:
        return torch.func.functional_call(
            module, ordered,
            (images.contiguous(memory_format=torch.channels_last), ))
    return Engine(name, _mixed(wrap(run), images.device, amp))


def _compiled(module: nn.Module, images: Tensor, amp: bool) -> Engine:
    def wrap(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        compiled = torch.compile(run, dynamic=True)
        # a batch of one would be compiled anew
        return lambda x: compiled(torch.cat([x] * 2) if len(x) == 1
                                  else x)[:len(x)]
    return _channels_last(module, images, amp, 'compile', wrap)


def _onnxruntime(module: nn.Module, images: Tensor, amp: bool) -> Engine:
    from ..export.onnx import session, traced
    if amp:
        raise ValueError('it computes in float32: leave amp out')
    log = logging.getLogger('torch.fx.experimental.symbolic_shapes')
    with ExitStack() as stack:
        # the reason is in the error; torch prints pages of the graph
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        # for batches of any size torch takes twice as long
        model = traced(module, (images, ), any_batch=False)
    opened = session(model.SerializeToString(), 'the network',
                     torch.get_num_threads())
    import onnxruntime
    (given, ), (taken, ) = opened.get_inputs(), opened.get_outputs()
    size, *shape = images.shape

    def run(images: Tensor) -> Tensor:
        if list(images.shape[1:]) != shape:
            warnings.warn('images of another size than the first ones: eager '
                          'torch runs them.', stacklevel=2)
            return module(images)
        filled = torch.zeros(-(-len(images) // size) * size, *shape)
        filled[:len(images)] = images
        return torch.cat([torch.from_numpy(
            opened.run([taken.name], {given.name: few.numpy()})[0])
            for few in filled.split(size)])[:len(images)]
    return Engine(f'onnxruntime {onnxruntime.__version__}', run)


_MAKERS = dict(channels_last=_channels_last, compile=_compiled,
               onnxruntime=_onnxruntime)


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    found, wanted = found.cpu(), wanted.cpu()
    if found.shape != wanted.shape:
        raise ValueError(f'it gives {tuple(found.shape)} in place of '
                         f'{tuple(wanted.shape)}')
    scale = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().max() / scale)


def _allowed(module: nn.Module, images: Tensor, wanted: Tensor,
             amp: bool) -> float:
    """What an engine may differ by.

    Where products are rounded to fewer bits, by autocast or TF32, every order
    of summing gives other features: then twice what eager torch is off
    itself.
    """
    cuda = images.device.type == 'cuda'
    if not cuda and not amp:
        return TOLERANCE
    with torch.no_grad(), (torch.backends.cudnn.flags(
            enabled=True, allow_tf32=False) if cuda else nullcontext()):
        off = _difference(wanted, module(images).float())
    return max(TOLERANCE, 2 * off)
