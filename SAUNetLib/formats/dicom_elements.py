"""Check the data elements of a DICOM file before GDCM allocates the lengths that they declare."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import printable

PIXEL_DATA = 0x7FE00010
DEEPEST = 64
"""Nested sequences and items; a file with more is refused, as GDCM recurses into them."""
LONGEST_VALUE = 2**16
"""Bytes; longer values are skipped."""
LONGEST_FIRST = 256
"""Bytes; the first values of a file without the "DICM" mark are shorter."""
_SYNTAX = 0x00020010
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_COMPRESSED = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_FIRST = (
    0x00020000, 0x00020001, 0x00020002, 0x00080000, 0x00080001, 0x00080005, 0x00080006, 0x00080008, 0x00080012,
    0x00080016, 0x00080018,
)  # fmt: skip
"""Tags with which a file without the mark may begin."""
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True)
class Element:
    """A data element that lies completely within its file.

    Attributes:
        tag: group and number, as 0xGGGGEEEE.
        depth: number of items that it is nested in; 0 in the data set itself.
        within: tag of the innermost sequence that it is in; 0 in the data set itself.
        length: bytes of its value; for compressed pixel data, of all fragments.
        value: empty unless requested.
        place: offset of its value in the file; 0 for compressed pixel data.
    """

    tag: int
    depth: int
    within: int
    length: int
    value: bytes = b""
    place: int = 0


@dataclass(frozen=True)
class Header:
    """The requested elements of a file, in file order, and its transfer syntax."""

    elements: tuple[Element, ...]
    syntax: str

    @property
    def compressed(self) -> bool:
        """Whether the pixel data are compressed."""
        return self.syntax.startswith(_COMPRESSED)

    @property
    def order(self) -> str:
        """Byte order of numbers, as `struct` and NumPy write it."""
        return ">" if self.syntax == _BIG_ENDIAN else "<"

    def texts(self, tag: int, within: int) -> list[str]:
        """The values of a text element in a sequence (0: in the data set itself), one for each item that has it."""
        elements = [element for element in self.elements if element.tag == tag and element.within == within]
        return [element.value.decode("latin-1").strip("\0 ") for element in elements]

    def short(self, tag: int) -> int:
        """The value of an unsigned short element of the data set itself; 0 where it is absent."""
        for element in self.elements:
            if element.tag == tag and not element.depth and element.length >= 2:
                return int(struct.unpack(f"{self.order}H", element.value[:2])[0])
        return 0

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the pixel data, as they are stored; 0 where there are none."""
        return sum(element.length for element in self.elements if element.tag == PIXEL_DATA and not element.depth)


def read_header(path: Path, wanted: Collection[int]) -> Header:
    """The requested elements of a DICOM file, after checking that all its elements fit into it and each other.

    Encoding: part 5 of the standard, sections 7 and A.4; file meta information: part 10, section 7.1.

    Raises:
        ValueError: a length exceeds the file, the structure is damaged, or the transfer syntax is unknown.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        walk = _Walk(file, frozenset(wanted))
        return Header(tuple(walk.elements()), walk.syntax)


def first_text(path: Path, tag: int) -> str:
    """A text element of a file's data set; empty if it is absent or the file cannot be read that far."""
    return first_texts(path, (tag,))[0]


def first_texts(path: Path, tags: Sequence[int]) -> list[str]:
    """As `first_text`, for several elements in one pass."""
    found: dict[int, str] = {}
    try:
        with open(path, "rb") as file:
            for element in _Walk(file, frozenset(tags)).elements():
                if element.tag in tags and not element.depth:
                    found.setdefault(element.tag, printable(element.value.decode("latin-1").strip("\0 ")))
                    if len(found) == len(tags):
                        break
    except (OSError, ValueError):
        pass
    return [found.get(tag, "") for tag in tags]


@dataclass(frozen=True)
class _Container:
    """An item or sequence being read: `_ITEM` or its tag, its end, whether its length is undefined and VRs explicit."""

    kind: int
    end: int
    open: bool
    explicit: bool


def begins_plainly(head: bytes) -> bool:
    """Whether these bytes begin a DICOM file without the preamble of 128 bytes and the "DICM" mark.

    Old archives contain such files. Hardly any other file begins with two consecutive elements of the first groups.
    """
    first = _plain_element(head)
    second = _plain_element(head[first[1] :]) if first else None
    return first is not None and second is not None and first[0] in _FIRST and first[0] < second[0] < 0x00090000


def _plain_element(head: bytes) -> tuple[int, int] | None:
    """Tag and total size (header and value) of a short little-endian element at the start of these bytes."""
    if len(head) < 8:
        return None
    group, number, kind, short = struct.unpack("<HH2sH", head[:8])
    length = short if kind in _SHORT else struct.unpack("<I", head[4:8])[0]
    if kind in _LONG:
        length = 4 + struct.unpack("<I", head[8:12].ljust(4, b"\xff"))[0]
    return (group << 16 | number, 8 + length) if group in (2, 8) and not length % 2 and length < LONGEST_FIRST else None


class _Walk:
    def __init__(self, file: IO[bytes], wanted: frozenset[int]) -> None:
        self.syntax = ""
        self._file, self._wanted = file, wanted
        self._size = os.fstat(file.fileno()).st_size
        head = file.read(132)
        self._place, self._order = (132 if head[128:] == b"DICM" else 0), "<"
        self._inside: list[_Container] = [_Container(_ITEM, self._size, False, True)]
        self._fragments = 0

    def elements(self) -> Iterator[Element]:
        """The requested elements and all pixel data, after the file meta information, which states the encoding."""
        self._read_syntax()
        while self._place < self._size:
            element = self._next()
            if element is not None and (element.value or element.tag == PIXEL_DATA):
                yield element
                if element.tag == PIXEL_DATA and not element.depth and self._padded():
                    return
            while len(self._inside) > 1 and not self._inside[-1].open and self._place == self._inside[-1].end:
                self._inside.pop()
        if len(self._inside) > 1:
            raise ValueError("a sequence does not end")

    def _read_syntax(self) -> None:
        self._file.seek(self._place)
        while self._peek()[:2] == b"\x02\0":
            element = self._next()
            if element is not None and element.tag == _SYNTAX:
                self.syntax = element.value.decode("latin-1").strip("\0 ")
        if not self.syntax:  # no file meta information: see how the first element is encoded
            self.syntax = _EXPLICIT if self._file.read(6)[4:] in _SHORT | _LONG else _IMPLICIT
            self._file.seek(self._place)
        explicit = self.syntax in (_EXPLICIT, _BIG_ENDIAN) or self.syntax.startswith(_COMPRESSED)
        if not explicit and self.syntax != _IMPLICIT:
            raise ValueError(f"the transfer syntax {self.syntax[:64]} is not known")
        self._order = ">" if self.syntax == _BIG_ENDIAN else "<"
        self._inside = [_Container(_ITEM, self._size, False, explicit)]

    def _peek(self) -> bytes:
        head = self._file.read(4)
        self._file.seek(self._place)
        return head

    def _padded(self) -> bool:
        """Whether only zeros follow: some archives pad files to whole blocks."""
        following = self._file.read(LONGEST_VALUE)
        self._file.seek(self._place)
        return len(following) == self._size - self._place and not any(following)

    def _take(self, count: int) -> bytes:
        """Read bytes, which must lie within the innermost open container."""
        self._fit(count)
        self._place += count
        value = self._file.read(count)
        if len(value) < count:
            raise ValueError("the file became shorter while it was read")
        return value

    def _fit(self, length: int) -> None:
        if length > self._inside[-1].end - self._place:
            raise ValueError("an element is longer than what contains it")

    def _numbers(self, form: str) -> tuple[int, ...]:
        form = self._order + form
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _next(self) -> Element | None:
        """Step over one element, or into or out of a sequence or an item."""
        group, number = self._numbers("HH")
        tag = group << 16 | number
        if group == 0xFFFE:
            return self._mark(tag, *self._numbers("I"))
        within = self._inside[-1]
        if within.kind != _ITEM:
            raise ValueError("a sequence holds something other than items")
        kind = self._take(2) if within.explicit else b""
        if kind in _LONG:
            self._take(2)
        elif within.explicit and kind not in _SHORT:
            raise ValueError("an element is of an unknown kind")
        (length,) = self._numbers("H" if kind in _SHORT else "I")
        if length == _UNDEFINED and kind not in _SHORT:
            if tag != PIXEL_DATA and kind not in (b"SQ", b"UN", b""):
                raise ValueError("an element has no length")
            self._fragments = 0
            self._enter(tag, None, within.explicit and kind != b"UN")
            return None
        self._fit(length)
        if length and (kind == b"SQ" or (not kind and self._peek() == b"\xfe\xff\x00\xe0")):
            self._enter(tag, length, within.explicit)
            return None
        return self._value(tag, length)

    def _value(self, tag: int, length: int) -> Element:
        depth, within = self._depth()
        if length <= LONGEST_VALUE and (tag in self._wanted or tag == _SYNTAX):
            return Element(tag, depth, within, length, self._take(length))
        place = self._place
        self._place += length
        self._file.seek(self._place)
        return Element(tag, depth, within, length, place=place)

    def _depth(self) -> tuple[int, int]:
        """Number of open items, and the tag of the innermost sequence."""
        sequences = [container.kind for container in self._inside if container.kind != _ITEM]
        return sum(container.kind == _ITEM for container in self._inside) - 1, sequences[-1] if sequences else 0

    def _mark(self, tag: int, length: int) -> Element | None:
        """Process the start of an item, or the end of an item or a sequence of undefined length."""
        within = self._inside[-1]
        if tag == _ITEM and within.kind == PIXEL_DATA:
            self._fit(length)
            self._value(tag, length)
            self._fragments += length
        elif tag == _ITEM and within.kind != _ITEM:
            self._enter(_ITEM, None if length == _UNDEFINED else length, within.explicit)
        elif within.open and not length and tag == (_ITEM_END if within.kind == _ITEM else _SEQUENCE_END):
            self._inside.pop()
            if within.kind == PIXEL_DATA:
                return Element(PIXEL_DATA, *self._depth(), self._fragments)
        else:
            raise ValueError("items and sequences are not properly nested")
        return None

    def _enter(self, kind: int, length: int | None, explicit: bool) -> None:
        if len(self._inside) > DEEPEST:
            raise ValueError("sequences are nested too deeply")
        if length is not None:
            self._fit(length)
        end = self._inside[-1].end if length is None else self._place + length
        self._inside.append(_Container(kind, end, length is None, explicit))
