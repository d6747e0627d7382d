"""Commands, called as a user calls them.

Ours are called in this process. Scripts of others run in a fork of it, which
has imported all that they import, and whose state is its own. With
``GAP_PLUGIN_TEST_PROCESSES=1`` each gets a fresh process.
"""

import io
import multiprocessing
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import textwrap
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import mmpretrain
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from gap_plugin.timm_network import image_settings

ROOT = Path(__file__).parents[1]
OURS = ROOT / 'tools'
STOCK = Path(mmpretrain.__file__).parent / '.mim' / 'tools'
DIGITS = ROOT / 'configs' / 'digits' / 'test_nfnet.py'
#: The scripts for several processes call the first python of the path.
PATH = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'

#: Script of ``tools/`` -> module of ``gap_plugin.cli``.
MODULES = {
    'train.py': 'train', 'test.py': 'test', 'extract_features.py': 'extract',
    'linear_probe.py': 'probe', 'rank_backbones.py': 'rank',
    'backbones.py': 'backbones', 'make_config.py': 'new_config',
    'predict.py': 'predict', 'cam.py': 'cam', 'report.py': 'report',
    'export.py': 'export'
}


#: Whether scripts of others get a fresh process. A fork cannot use a GPU.
PROCESSES = (os.environ.get('GAP_PLUGIN_TEST_PROCESSES') == '1'
             or torch.cuda.is_available())


def call(*command, ok=True, timeout=300, cwd=ROOT):
    """Run a process; what it prints, whose exit status has to be right."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': PATH,
             'MPLBACKEND': 'Agg'},
        timeout=timeout, check=False)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) is ok, text[-3000:]
    return text


def python(script, *args, ok=True, process=False, **kwargs):
    """Run a script: those of ``tools/`` in this process, others in a fork.

    What ends well says all that MMEngine writes; an error its one line.

    Args:
        script: Its path, or the name of a module.
        *args: Its command line.
        ok: Whether it has to end well.
        process: Whether it is to have a process of its own.
        **kwargs: Of :func:`call`.
    """
    module = not isinstance(script, Path)
    ours = (not module and script.parent == OURS
            and script.name in MODULES)
    if ours and ok and script.name in ('train.py', 'test.py'):
        args = (*args, '--verbose')
    if ours and not process:
        return main(MODULES[script.name], *args, ok=ok, prog=script.name)
    if process or PROCESSES:
        return call(sys.executable, '-W', 'ignore',
                    *(['-m'] if module else []), script, *args, ok=ok,
                    **kwargs)
    return _fork(script, args, ok, **kwargs)


def _fork(script, args, ok, timeout=300, cwd=ROOT):
    """Run a script in a fork of this process; what it prints."""
    with tempfile.NamedTemporaryFile() as file:
        child = multiprocessing.get_context('fork').Process(
            target=_run, args=(script, [str(a) for a in args], file.name,
                               str(cwd)))
        child.start()
        child.join(timeout)
        late = child.is_alive()
        child.kill()
        child.join()
        text = Path(file.name).read_text(errors='replace')
    assert not late, f'{script} takes over {timeout} s: {text[-3000:]}'
    assert (child.exitcode == 0) is ok, text[-3000:]
    return text


def _run(script, args, file, folder):
    """In the fork: as the interpreter runs a script."""
    out = os.open(file, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = open(1, 'w', closefd=False, buffering=1)
    sys.stderr = open(2, 'w', closefd=False, buffering=1)
    for kind in (MMLogger, MessageHub, Visualizer, DefaultScope):
        kind._instance_dict.clear()
    image_settings._alive.clear()  # networks of other tests
    warnings.simplefilter('ignore')
    os.chdir(folder)
    os.environ['MPLBACKEND'] = 'Agg'
    sys.argv = [str(script), *args]
    if isinstance(script, Path):
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name='__main__')
    else:
        sys.path.insert(0, folder)
        runpy.run_module(script, run_name='__main__')


def main(module, *args, ok=True, prog=None):
    """Call a command in this process; what it prints."""
    module = import_module(f'gap_plugin.cli.{module}')
    text, folder, status = io.StringIO(), os.getcwd(), None
    os.chdir(ROOT)
    try:
        with redirect_stdout(text), redirect_stderr(text):
            module.main([str(arg) for arg in args], prog)
    except SystemExit as ended:
        status = ended.code
        if isinstance(status, str):
            text.write(status)
    finally:
        os.chdir(folder)
    assert (not status) is ok, text.getvalue()[-3000:]
    return text.getvalue()


def snippet(code, **env):
    """Run code in a process of its own; how it ended."""
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)],
        capture_output=True, text=True, check=False,
        env={**os.environ, **env})


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def last_line(text):
    return text.strip().splitlines()[-1]


def validated(text):
    """The last accuracy that validation reported."""
    return re.findall(r'Epoch\(val\).*accuracy/top1: ([\d.]+)', text)[-1]


def reported(text):
    """The accuracy that a test reported."""
    return re.findall(r'Epoch\(test\).*accuracy/top1: ([\d.]+)', text)[-1]
