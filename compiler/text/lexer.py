"""Stretches of a text that know their file, line and columns, so that every error can point at its place.

%relu = F.relu(%conv1) : f32[1, 2, 8, 8]
        ^^^^^^^^^^^^^^                       Fragment.expression() parses it with Python's own parser
               ^^^^^^                        Fragment.at(node) finds where a part of the expression stands
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from prunec.compiler.errors import Span, TextError

LONGEST: Final = 400
"""A longer line, or message, isn't shown in full."""
TOO_DEEP: Final = "this is nested too deeply, or too long a chain"

_TOKEN = re.compile(r"""(?P<string>"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?)|(?P<node>%[A-Za-z_]\w*)""")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of one source line, with its place in the file."""

    text: str
    """The whole line."""
    start: int
    stop: int
    file: str = "<text>"
    line: int = 1

    @classmethod
    def of(cls, text: str, file: str = "<text>", line: int = 1) -> Fragment:
        """A whole line, without the space around it."""
        return cls(text, 0, len(text), file, line).strip()

    @property
    def code(self) -> str:
        """The stretch itself."""
        return self.text[self.start : self.stop]

    def part(self, start: int, stop: int | None = None) -> Fragment:
        """A stretch of this stretch, counted from its start, without the space around it."""
        return replace(self, start=self.start + start, stop=self.stop if stop is None else self.start + stop).strip()

    def strip(self) -> Fragment:
        """The same without the space around it."""
        code = self.code
        lead, kept = len(code) - len(code.lstrip()), len(code.strip())
        return replace(self, start=self.start + lead, stop=self.start + lead + kept)

    def span(self) -> Span:
        """Its place in the file; a very long line isn't shown."""
        text = self.text if len(self.text) <= LONGEST else ""
        return Span(self.file, self.line, self.start + 1, max(self.stop - self.start, 1), text)

    def error(self, message: str, hint: str | None = None) -> TextError:
        """An error that points here."""
        return TextError(message if len(message) <= LONGEST else f"{message[:LONGEST]}...", at=self.span(), hint=hint)

    def find(self, char: str) -> int:
        """Where a character first stands outside strings and brackets, or -1."""
        return next(self._places(char), -1)

    def split(self, char: str) -> list[Fragment]:
        """The stretches between the places where a character stands outside strings and brackets."""
        ends = [*self._places(char), self.stop - self.start]
        return [self.part(start, end) for start, end in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True)]

    def _places(self, char: str) -> Iterator[int]:
        depth = 0
        for index, found in enumerate(blank_strings(self.code)):
            if found == char and depth == 0:
                yield index
            depth += (found in "([{") - (found in ")]}")

    def expression(self, callee: int = 0) -> ast.expr:
        """The stretch as a Python expression; `%name` and the first `callee` characters stand there as plain names.

        Masking keeps every column, so that the syntax tree's offsets are the text's.
        """
        masked = "_" * callee + _TOKEN.sub(
            lambda m: m[0].replace("%", "_", 1) if m["node"] else m[0], self.code[callee:]
        )
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes and of `1is 2`: what they give is checked
                return ast.parse(masked, mode="eval").body
        except (RecursionError, MemoryError) as fault:  # a chain of operators makes a tree as deep as it is long
            raise self.error(TOO_DEEP) from fault
        except SyntaxError as fault:
            column = min((fault.offset or len(masked) or 1), len(masked) or 1) - 1  # 0 is the end
            place = replace(self, start=self.start + column, stop=self.start + column + 1)
            raise place.error(f"expected an expression, got {self.code!r}: {fault.msg}") from fault

    def at(self, node: ast.AST) -> Fragment:
        """The stretch that a node of `expression` was read from (`ast` counts bytes, a person counts characters)."""
        assert isinstance(node, ast.expr | ast.keyword), f"{type(node).__name__} has no place"
        raw = self.code.encode()
        start, stop = (len(raw[:end].decode()) for end in (node.col_offset, node.end_col_offset))
        return replace(self, start=self.start + start, stop=self.start + stop)


def blank_strings(code: str) -> str:
    """The same line with string literals blanked out, so that what stands in them isn't taken for syntax."""
    return _TOKEN.sub(lambda m: " " * len(m[0]) if m["string"] else m[0], code)
