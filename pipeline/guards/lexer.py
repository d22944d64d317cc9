"""Splits a condition into tokens for ``pipeline.guards.parser``, and raises errors with positions."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn

from pipeline.errors import ConfigError

MAX_CHARACTERS: Final = 1000

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<mark>==|!=|<=|>=|[=<>()])|(?P<word>[^\s=<>!()"']+))""", re.UNICODE
)


class ConditionError(ConfigError):
    """A condition or a rule that cannot be parsed."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position
        """Number of characters before the error."""


class Token(NamedTuple):
    """A word, an operator or bracket (``mark``), or a quoted text."""

    kind: str
    """``quoted``, ``mark``, ``word`` or ``end``."""
    text: str
    position: int
    """Number of characters before the token."""

    @property
    def unquoted(self) -> str:
        """The text without quotes."""
        return self.text[1:-1] if self.kind == "quoted" else self.text


class TokenStream:
    """The tokens of a text in order, with one token of lookahead."""

    def __init__(self, text: str, where: str, example: str) -> None:
        """Split a text into tokens.

        Args:
            text: the condition or rule.
            where: the start of each error message.
            example: a valid text, shown at the end of each error message.

        Raises:
            ConfigError: the text is longer than ``MAX_CHARACTERS``, or has a character that no condition may have.
        """
        self._where, self._example = where, example
        if len(text) > MAX_CHARACTERS:
            short = where.partition(":")[0] or "rule"
            raise ConfigError(f"{short}: has {len(text)} characters; the limit is {MAX_CHARACTERS}: make it shorter")
        self._tokens = self._split(text)
        self._position = 0

    def _split(self, text: str) -> list[Token]:
        tokens, position = [], 0
        rest = len(text.rstrip())
        while position < rest:
            match = _TOKEN.match(text, position)
            if match is None:
                position += len(text[position:]) - len(text[position:].lstrip())
                character = text[position]
                is_quote = character in "\"'"  # the other unmatched character is '!'
                hint = "the quote is not closed" if is_quote else "is not an operator; write '!=' or 'not'"
                self.fail(Token("", character, position), hint)
            kind = str(match.lastgroup)
            tokens.append(Token(kind, match[kind], match.start(kind)))
            position = match.end()
        return [*tokens, Token("end", "the end", len(text))]

    @property
    def peek(self) -> Token:
        """The next token, of kind ``end`` after the last token; it is not consumed."""
        return self._tokens[self._position]

    @property
    def previous(self) -> Token:
        """The token that was consumed last."""
        return self._tokens[self._position - 1]

    def next(self) -> Token:
        """Consume and return the next token."""
        token = self.peek
        self._position = min(self._position + 1, len(self._tokens) - 1)
        return token

    def accept(self, word: str) -> bool:
        """Consume the next token if it is ``word``; return whether it was."""
        token = self.peek
        if token.kind not in {"word", "mark"} or token.text.lower() != word:
            return False
        self._position += 1
        return True

    def fail(self, token: Token, reason: str) -> NoReturn:
        """Raise ``ConditionError`` with the position of a token and the reason."""
        found = "the end" if token.kind == "end" else repr(token.text)
        example = f"such as: {self._example}"
        message = f"{self._where}character {token.position + 1}, {found}: {reason} ({example})"
        raise ConditionError(message, token.position)
