"""timm networks as feature extractors: pure torch and timm, no OpenMMLab.

Reading order: :mod:`.weights` (files), :mod:`.fit` (whether they are those of
a network), :mod:`.grids` (position embeddings), :mod:`.loading` (their way
into it), :mod:`.create` (the network with its weights; :mod:`.hub`: whether
they can be had), :mod:`.image_settings` (its images), :mod:`.trace` (what a
run of it shows), :mod:`.unused` (what can go), :mod:`.feature_map` (where its
last map is), :mod:`.sizes` (which images it takes), :mod:`.depth` (which
parameter lies how deep), :mod:`.kinds` (of what layers it is made).
"""

from .create import (
    NetworkSpec,
    check_name,
    create_bare,
    create_network,
    is_registered,
    without_weights,
)
from .depth import freeze, layer_depths, tune_part
from .feature_map import FeaturePath, prepare, read_features
from .hub import hub_answers
from .image_settings import (
    DataSettings,
    DataSource,
    check_size,
    data_source,
    live_source,
    pair,
    remember,
)
from .kinds import has_convolutions, is_transformer
from .sizes import adapt, image_size, prepared, size_refused
from .trace import INPUT_ERRORS, run_for_shapes
from .weights import IMAGE_SIZE

__all__ = [
    'IMAGE_SIZE', 'INPUT_ERRORS', 'DataSettings', 'DataSource', 'FeaturePath',
    'NetworkSpec', 'adapt', 'check_name', 'check_size', 'create_bare',
    'create_network', 'data_source', 'freeze', 'has_convolutions',
    'hub_answers', 'image_size', 'is_registered', 'is_transformer',
    'layer_depths', 'live_source', 'pair', 'prepare', 'prepared',
    'read_features', 'remember', 'run_for_shapes', 'size_refused', 'tune_part',
    'without_weights'
]
