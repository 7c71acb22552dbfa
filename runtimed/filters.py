"""containerd's filter expressions: which records a list or a subscription is about.

::

    filter    = selector { "," selector }          all of them
    selector  = fieldpath [ operator value ]       without an operator: the field is present
    fieldpath = field { "." field }                field: letters, digits, "_", "-", "/"; others in "..."
    operator  = "==" | "!=" | "~="                 equal, not equal, a regular expression matches somewhere
    value     = what has no blank and no comma, or "..." (with Go's escapes), or |...|; after ~= also /.../

Blanks may stand between the parts. Of several filters one must match. An absent field is unequal to every value.
Regular expressions are RE2's, as containerd's are, and match in time linear in the text.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import re2

from runtimed.errors import InvalidArgument

T = TypeVar("T")

Adaptor = Callable[[list[str]], str | None]  # field path -> value, or None if the record has no such field

_MOST_SELECTORS = 1_000
_LONGEST = 64 * 1024

_RE2 = re2.Options()
_RE2.log_errors = False  # to stderr; they go to who sent them
_RE2.max_mem = 1 << 20  # bytes a compiled pattern may take: larger ones are refused

_BLANK = re.compile(r"\s*")
_FIELD = re.compile(r"[\w/-]+")
_OPERATOR = re.compile(r"[=!~<>]+")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ALTERNATIVE = re.compile(r"\|(?:[^|\\]|\\.)*\||/(?:[^/\\]|\\.)*/", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}


@dataclass(frozen=True, slots=True)
class _Selector:
    path: list[str]
    operator: str  # "" for presence
    value: str = ""
    pattern: Any = None  # compiled, for ~=

    def match(self, adaptor: Adaptor) -> bool:
        value = adaptor(self.path)
        match self.operator:
            case "==":
                return value == self.value
            case "!=":
                return value != self.value
            case "~=":
                return self.pattern.search(value or "") is not None
        return value is not None


@dataclass(frozen=True, slots=True)
class Filter:
    """What :func:`parse` returns: alternatives of selectors that must all match. Without alternatives all match."""

    alternatives: tuple[tuple[_Selector, ...], ...] = ()

    def match(self, adaptor: Adaptor) -> bool:
        """Say whether the record behind *adaptor* is meant."""
        if not self.alternatives:
            return True
        return any(all(selector.match(adaptor) for selector in selectors) for selectors in self.alternatives)

    def select(self, records: Iterable[T], field: Callable[[T, list[str]], str | None]) -> list[T]:
        """Return those *records* that are meant; *field* is the adaptor with the record as first argument."""
        if not self.alternatives:
            return [*records]
        return [record for record in records if self.match(lambda path, record=record: field(record, path))]  # type: ignore[misc]


def parse(expressions: Sequence[str]) -> Filter:
    """Compile filter expressions; [] matches everything, and so does an empty expression.

    Raises:
        InvalidArgument: an expression is not well formed; the message says where.
    """
    return Filter(tuple(_Scanner(expression).selectors() for expression in expressions))


class _Scanner:
    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise InvalidArgument(f"filter is longer than {_LONGEST} characters")
        self._text = text
        self._position = 0

    def selectors(self) -> tuple[_Selector, ...]:
        found: list[_Selector] = []
        self._take(_BLANK)
        while self._position < len(self._text):
            found.append(self._selector())
            if len(found) > _MOST_SELECTORS:
                raise self._error(f"more than {_MOST_SELECTORS} selectors")
            self._take(_BLANK)
            if self._position == len(self._text):
                break
            if not self._accept(","):
                raise self._error("expected a comma")
            self._take(_BLANK)
            if self._position == len(self._text):
                raise self._error("expected a selector after the comma")
        return tuple(found)

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._accept("."):
            path.append(self._field())
        self._take(_BLANK)
        operator = self._take(_OPERATOR)
        if not operator:
            return _Selector(path, "")
        if operator not in ("==", "!=", "~="):
            raise self._error(f"unknown operator {operator!r}; there are ==, != and ~=")
        self._take(_BLANK)
        value = self._value(operator)
        return _Selector(path, operator, value, self._compiled(value) if operator == "~=" else None)

    def _compiled(self, pattern: str) -> Any:
        try:
            return re2.compile(pattern, _RE2)
        except re2.error as exc:
            raise self._error(f"regular expression {pattern[:80]!r}: {exc}") from None

    def _field(self) -> str:
        if self._text.startswith('"', self._position):
            return self._quoted()
        name = self._take(_FIELD)
        if not name:
            raise self._error("expected a field name")
        return name

    def _value(self, operator: str) -> str:
        start = self._text[self._position : self._position + 1]
        if start == '"':
            return self._quoted()
        if start == "|" or (start == "/" and operator == "~="):
            quoted = self._take(_ALTERNATIVE)
            if not quoted:
                raise self._error(f"no closing {start}")
            return quoted[1:-1].replace(f"\\{start}", start)
        value = self._take(_VALUE)
        if not value:
            raise self._error("expected a value")
        return value

    def _quoted(self) -> str:
        quoted = self._take(_QUOTED)
        if not quoted:
            raise self._error('no closing "')
        return _ESCAPE.sub(self._unescaped, quoted[1:-1])

    def _unescaped(self, found: re.Match[str]) -> str:
        for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
            if found[group]:
                number = int(found[group], base)
                if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                    raise self._error(f"escape {found[0]!r} is no character")
                return chr(number)
        if found[5] not in _SIMPLE_ESCAPES:
            raise self._error(f"unknown escape {found[0]!r}")
        return _SIMPLE_ESCAPES[found[5]]

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._position)
        if found is None:
            return ""
        self._position = found.end()
        return found[0]

    def _accept(self, text: str) -> bool:
        if self._text.startswith(text, self._position):
            self._position += len(text)
            return True
        return False

    def _error(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self._text[:160]!r}: {what} at position {self._position}")
