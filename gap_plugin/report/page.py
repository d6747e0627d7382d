"""The page: what is found, as one file of HTML."""

import base64
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

_HERE = Path(__file__).parent


def shown(name: object) -> str:
    """A name as it is read: what has no sign of its own is spelt out.

    Line breaks, bytes that are no text, and characters that turn the
    direction of what follows are among these.
    """
    return ''.join(
        c if c.isprintable() else c.encode(
            'ascii', 'backslashreplace').decode() if ord(c) > 127 else
        repr(c)[1:-1] for c in str(name))


def shown_lines(text: str) -> str:
    """The same of a text of several lines."""
    return '\n'.join(map(shown, text.split('\n')))


def path(name: str) -> Markup:
    """A name of a file, which may be broken behind each folder."""
    return Markup(  # noqa: S704 escaped
        str(escape(shown(name))).replace('/', '/<wbr>'))


def percent(share: float) -> str:
    """A share between 0 and 1 as people write it."""
    return f'{100 * share:.0f} %' if .1 <= share <= .99 or share in (
        0, 1) else f'{100 * share:.1f} %'


def render(content: Mapping[str, Any]) -> str:
    """The page of what its parts hold, see ``page.html.jinja``.

    All values are text and are escaped. No script is in it, and its policy
    lets a browser load nothing but the pictures that stand in the page.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE, encoding='utf-8'), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(shown=shown, shown_lines=shown_lines,
                               path=path, percent=percent)
    style = (_HERE / 'page.css').read_text(encoding='utf-8')
    digest = hashlib.sha256(style.encode()).digest()
    return environment.get_template('page.html.jinja').render(
        content, style=Markup(style),  # noqa: S704 ours, and no name in it
        style_hash=f'sha256-{base64.b64encode(digest).decode("ascii")}',
        date=time.strftime('%Y-%m-%d'))
