"""Commands, called as a user calls them: in this process, or in their own."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import mmpretrain

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
    'backbones.py': 'backbones', 'make_config.py': 'new_config'
}


def call(*command, ok=True, timeout=300):
    """Run a process; what it prints, whose exit status has to be right."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': PATH},
        timeout=timeout, check=False)
    text = done.stdout + done.stderr
    assert (done.returncode == 0) is ok, text[-3000:]
    return text


def python(script, *args, ok=True, process=False, **kwargs):
    """Run a script: those of ``tools/`` in this process.

    What ends well says all that MMEngine writes; an error its one line.

    Args:
        script: Its path.
        *args: Its command line.
        ok: Whether it has to end well.
        process: Whether it is to have a process of its own.
        **kwargs: Of :func:`call`.
    """
    script = Path(script)
    ours = script.parent == OURS and script.name in MODULES
    if ours and ok and script.name in ('train.py', 'test.py'):
        args = (*args, '--verbose')
    if not ours or process:
        return call(sys.executable, '-W', 'ignore', script, *args, ok=ok,
                    **kwargs)
    return main(MODULES[script.name], *args, ok=ok, prog=script.name)


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


def last_line(text):
    return text.strip().splitlines()[-1]


def validated(text):
    """The last accuracy that validation reported."""
    return re.findall(r'Epoch\(val\).*accuracy/top1: ([\d.]+)', text)[-1]


def reported(text):
    """The accuracy that a test reported."""
    return re.findall(r'Epoch\(test\).*accuracy/top1: ([\d.]+)', text)[-1]
