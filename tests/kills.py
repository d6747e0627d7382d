"""Processes that are killed at a moment that does not depend on speed.

A moment is a change of a file: the n-th that is opened for writing, renamed,
removed, or made as a folder. A process dies ahead of it; a file that is
written anew is half there. The process is a fork of this one, and is killed
by SIGKILL.
"""

import multiprocessing
import os
import re
import signal
import sys

#: How many kills a loop has at the default level.
KILLS = int(os.environ.get('GAP_PLUGIN_TEST_KILLS', '3'))


class Changes:
    """Counts changes of files whose paths fit, and dies ahead of one."""

    def __init__(self, where, count, moment=None):
        self.where, self.count, self.moment = re.compile(where), count, moment

    def __call__(self, event, args):
        if event not in ('open', 'os.mkdir', 'os.rename', 'os.remove'):
            return
        path = str(args[0])
        mode = set(str(args[1])) if event == 'open' else set()
        if not self.where.search(path) or event == 'open' and not (
                mode & set('wax+')):
            return
        self.count.value += 1
        if self.count.value == self.moment:
            if mode & set('wx'):
                with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT
                                       | os.O_TRUNC, 0o666), 'w') as file:
                    file.write('half')
            os.kill(os.getpid(), signal.SIGKILL)


def _work(work, where, count, moment):
    sys.addaudithook(Changes(where, count, moment))
    work()


def fork(work, where, moment=None, timeout=600):
    """Do something in a fork.

    Args:
        work: A function.
        where: What a path has to match for its changes to be counted.
        moment: The change ahead of which the process dies.
        timeout: Seconds.

    Returns:
        Its exit status, and how many changes there were.
    """
    context = multiprocessing.get_context('fork')
    count = context.Value('i', 0, lock=False)
    process = context.Process(target=_work, args=(work, where, count, moment))
    process.start()
    process.join(timeout)
    late = process.is_alive()
    process.kill()
    process.join()
    assert not late, f'a fork takes over {timeout} s'
    return process.exitcode, count.value


def moments(count, kills):
    """So many of a number of moments: the first, the last, and between."""
    kills = min(kills, count)
    if kills == 1:
        return [1]
    return sorted({1 + (count - 1) * i // (kills - 1) for i in range(kills)})
