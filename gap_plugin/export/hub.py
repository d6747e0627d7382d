"""A folder of timm on the hub of Hugging Face."""

from pathlib import Path

from ..messages import first_line
from ..timm_network import hub_answers

#: What makes a repository one of timm's. Names of classes stand in
#: config.json alone; the license is for the owner to say.
_CARD = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
---
"""


def check_repository(name: str) -> None:
    """Refuse a name that no repository can have, ahead of any work.

    Raises:
        ImportError: If huggingface_hub is not installed.
        ValueError: If it is none.
    """
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:
        raise ImportError('repositories need huggingface_hub: pip install '
                          'huggingface_hub') from None
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f'{name!r} is no name of a repository, such as '
                         f"'me/stamps': {first_line(error)}") from None


def push_to_hub(folder: str | Path, name: str) -> str:
    """Upload a folder that timm can load.

    The repository is made if it is not there, and gets a model card if it
    has none.

    Args:
        folder: What :func:`~gap_plugin.export.export_timm` has written.
        name: Of the repository, ``'owner/name'``.

    Returns:
        What ``timm.create_model`` takes to load it.

    Raises:
        ConnectionError: If the hub does not answer, or refuses it.
        ValueError: If the name is none of a repository.
    """
    check_repository(name)
    from huggingface_hub import HfApi

    try:
        if not hub_answers():
            raise ConnectionError('the hub does not answer')
        api = HfApi()
        name = api.create_repo(name, exist_ok=True).repo_id
        if not api.file_exists(name, 'README.md'):
            api.upload_file(path_or_fileobj=_CARD.encode(), repo_id=name,
                            path_in_repo='README.md')
        api.upload_folder(folder_path=folder, repo_id=name)
    except Exception as error:  # noqa: BLE001 of several libraries
        raise ConnectionError(
            f'{str(folder)!r} is whole, but cannot be uploaded to {name!r}: '
            f'{first_line(error)[:200]}; "hf auth login" and "hf upload" are '
            'another way.') from None
    return f'hf-hub:{name}'
