"""The words of a condition (``pipeline.guards.parser``) from left to right, one ahead; and where one is wrong."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn

from pipeline.errors import ConfigError

MAX_CHARACTERS: Final = 1000

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<mark>==|!=|<=|>=|[=<>()])|(?P<word>[^\s=<>!()"']+))""", re.UNICODE
)


class Token(NamedTuple):
    """One word, sign or quoted text."""

    kind: str
    """``quoted``, ``mark``, ``read_str`` or ``end``."""
    text: str
    position: int
    """Characters before it."""

    @property
    def unquoted(self) -> str:
        """Its text without quotes."""
        return self.text[1:-1] if self.kind == "quoted" else self.text


class TokenStream:
    """A text's tokens, taken one after the other."""

    def __init__(self, text: str, where: str, example: str) -> None:
        """Take a text, what stands before a message about it, and an example for such messages.

        Raises:
            ConfigError: it is too long, or holds what no condition does.
        """
        self._where, self._example = where, example
        if len(text) > MAX_CHARACTERS:
            short = where.partition(":")[0] or "rule"
            raise ConfigError(f"{short}: {len(text)} characters, more than {MAX_CHARACTERS}; make it shorter")
        self._tokens = self._split(text)
        self._position = 0

    def _split(self, text: str) -> list[Token]:
        tokens, place = [], 0
        rest = len(text.rstrip())
        while place < rest:
            match = _TOKEN.match(text, place)
            if match is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                character = text[place]
                hint = (
                    "a quote that is not closed"
                    if character in "\"'"
                    else "no sign of a condition; '!=' is 'not equal'"
                )
                self.fail(Token("", character, place), hint)
            kind = str(match.lastgroup)
            tokens.append(Token(kind, match[kind], match.start(kind)))
            place = match.end()
        return [*tokens, Token("end", "the end", len(text))]

    @property
    def peek(self) -> Token:
        """The next one; the end stays ahead."""
        return self._tokens[self._position]

    @property
    def previous(self) -> Token:
        """The one that was taken last."""
        return self._tokens[self._position - 1]

    def next(self) -> Token:
        """Return the next one, and go on."""
        token = self.peek
        self._position = min(self._position + 1, len(self._tokens) - 1)
        return token

    def accept(self, word: str) -> bool:
        """Go on if the next one is this word or mark; say whether it was."""
        token = self.peek
        if token.kind not in {"word", "mark"} or token.text.lower() != word:
            return False
        self._position += 1
        return True

    def fail(self, token: Token, why: str) -> NoReturn:
        """Raise ``ConfigError``: which token is wrong, and why."""
        found = "the end" if token.kind == "end" else repr(token.text)
        example = f"such as: {self._example}"
        raise ConfigError(f"{self._where}character {token.position + 1}, {found}: {why} ({example})")
