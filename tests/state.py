"""What a process holds for all: a command has to leave it as it was."""

import logging
import multiprocessing
import os
import random
import resource
import sys
import warnings

import cv2
import numpy as np
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


def state():
    """All of it, by name; equal as long as nothing has changed."""
    numbers = np.random.get_state()
    held = {
        kind.__name__: {name: id(instance) for name, instance in
                        kind._instance_dict.items()}
        for kind in (DefaultScope, MMLogger, MessageHub, Visualizer)
    }
    return dict(
        held, environment=dict(os.environ), folder=os.getcwd(),
        argv=list(sys.argv), path=list(sys.path),
        streams=(id(sys.stdout), id(sys.stderr)),
        random=random.getstate(),
        numpy=(numbers[1].tobytes(), *numbers[2:]),
        torch=torch.get_rng_state().numpy().tobytes(),
        threads=(torch.get_num_threads(), cv2.getNumThreads()),
        dtype=torch.get_default_dtype(), gradients=torch.is_grad_enabled(),
        deterministic=(torch.are_deterministic_algorithms_enabled(),
                       torch.backends.cudnn.benchmark,
                       torch.backends.cudnn.deterministic),
        start=multiprocessing.get_start_method(allow_none=True),
        files=resource.getrlimit(resource.RLIMIT_NOFILE),
        warnings=(list(warnings.filters), id(warnings.showwarning)),
        logging=([id(h) for h in logging.root.handlers], logging.root.level,
                 logging.root.manager.disable),
        in1d=hasattr(np, 'in1d'))


def changed(before, after):
    """What differs, as text."""
    return {name: f'{str(before[name])[:300]} -> {str(after[name])[:300]}'
            for name in before if before[name] != after[name]}
