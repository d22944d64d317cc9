"""Fills the page of the command line from the program's own options when the site is built."""

from __future__ import annotations

from typing import Any

import typer
from typer.cli import get_docs_for_click

from commands.app import app

PLACEHOLDER = "<!-- command line -->"


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 - what mkdocs gives to hooks
    """Return the page with the options of every command in place of the placeholder."""
    if PLACEHOLDER not in markdown:
        return markdown
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="recipro-stream")
    text = get_docs_for_click(obj=command, ctx=context, name="recipro-stream", title="Options")
    return markdown.replace(PLACEHOLDER, text.replace("\n# Options", "\n"))
