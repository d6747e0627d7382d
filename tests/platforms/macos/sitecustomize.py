"""Lets Linux miss what macOS misses, for processes with this on PYTHONPATH."""

import multiprocessing
import os

for name in ('fdatasync', 'posix_fadvise', 'posix_fallocate',
             'sched_getaffinity', 'sched_setaffinity'):
    delattr(os, name)

# MMEngine asks for fork in a runner; what must start anew is started so here
multiprocessing.set_start_method('spawn', force=True)
