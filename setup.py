"""Metadata. Neither host is in ``install_requires``: installing one over
the other breaks both.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
version = runpy.run_path(str(here / 'gap_plugin' / 'version.py'))
bounds = runpy.run_path(str(here / 'gap_plugin' / 'requirements.py'))


class BuildWithConfigs(build_py):
    """Puts configs and tools into the wheel, where ``mim`` looks for them."""

    def run(self) -> None:
        """Build the package, then copy what lies beside it."""
        super().run()
        if self.editable_mode:  # they are found beside the package
            return
        target = Path(self.build_lib) / 'gap_plugin' / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for folder in ('configs', 'tools'):
            shutil.copytree(
                here / folder, target / folder,
                ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
        shutil.copy(here / 'model-index.yml', target)


setup(
    name='gap_plugin',
    version=version['__version__'],
    description='Any timm network as an MMPretrain backbone: one map, '
    'global average pooling, batch normalisation, a linear head',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='gap_plugin contributors',
    license='Apache-2.0',
    keywords=[
        'computer vision', 'image classification', 'timm', 'mmpretrain',
        'openmmlab', 'linear probe', 'transfer learning'
    ],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['gap_plugin', 'gap_plugin.*']),
    # stock/missing is a folder on the path of a process, not a package
    package_data={'gap_plugin': ['py.typed', 'README.md'],
                  'gap_plugin.report': ['page.css', 'page.html.jinja'],
                  'gap_plugin.stock': ['missing/*.py']},
    cmdclass={'build_py': BuildWithConfigs},
    entry_points={
        'console_scripts': ['gap-plugin = gap_plugin.__main__:main']
    },
    python_requires=f'>={bounds["PYTHON"]}',
    install_requires=bounds['INSTALL'],
    extras_require=bounds['EXTRAS'])
