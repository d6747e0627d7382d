"""What no output of a network needs, so that plain DDP trains the rest."""

from collections.abc import Iterable

from torch import nn

from .trace import Run

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_unused(model: nn.Module,
                run: Run) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the modules and, apart, of the parameters to take out.

    One that several parents share has a name by each, and goes from all.
    """
    dead = {n for n, _ in model.named_parameters(
        remove_duplicate=False)} - run.live
    # a part of what has been called is needed, too
    needed = {'.'.join(parts[:end]) for parts in (
        called.split('.') for called in run.called)
        for end in range(1, len(parts) + 1)}
    modules: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = [f'{name}.{n}' for n, _ in module.named_parameters()]
        # containers are iterated over as well as called: only what is in them
        # can go
        if (name and own and dead.issuperset(own)
                and not isinstance(module, _CONTAINERS)
                and not f'{name}.'.startswith(tuple(f'{m}.' for m in modules))
                and name not in needed):
            modules.append(name)
    prefixes = tuple(f'{m}.' for m in modules)
    return tuple(modules), tuple(
        sorted(n for n in dead if not n.startswith(prefixes)))


def take_out(model: nn.Module, modules: Iterable[str],
             parameters: Iterable[str]) -> None:
    """Take out of a network what no output needs.

    Modules that never run become identities. Parameters that run, but reach
    no output (the other branches of crossvit, the class token of volo),
    become buffers of the same name, so that plain DDP trains the rest.
    """
    for name in modules:
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, nn.Identity())
    for name in parameters:
        parent, _, key = name.rpartition('.')
        owner = model.get_submodule(parent)
        if key in owner._parameters:  # its owner may have several names
            unused = owner._parameters.pop(key)
            owner.register_buffer(key, unused.detach())
