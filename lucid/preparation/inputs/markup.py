"""The text of HTML and of Markdown, which is translated into HTML first. A file is a document.

Python's `html.parser` takes time that grows with the square of the text where tags do not end (60 kB of `<a ` took 30
seconds). This takes time in proportion to the text. As in browsers, a tag or comment that does not end takes in the
rest; unlike there, an element that does not end, such as `<button>` in a sentence about it, is taken for text.
"""

import html
import re
from collections.abc import Iterator

# Characters of Markdown that are translated at once, up to a blank line: the library takes forty times as many bytes.
_AT_ONCE = 1 << 20
# Settings for the program that makes a site, between two rules: not any text between two rules.
_FRONT_MATTER = re.compile(
    r"\s*(---|\+\+\+)[ \t]*\n(?=[\w\"'.-]+[ \t]*[:=]).*?\n(?:\1|\.\.\.)[ \t]*(?=\n|\Z)", re.DOTALL
)
_BLANK_LINE, _LINE_END = re.compile(r"\n[ \t]*\n"), re.compile(r"\n")

_TOKEN = re.compile(
    r"<!--.*?(?:-->|\Z)"
    r"|<(?P<end>/?)(?P<name>[a-zA-Z][^\s/>]*+)"
    r"(?:=\s*+\"[^\"]*+(?:\"|\Z)|=\s*+'[^']*+(?:'|\Z)|[^>])*+(?:>|\Z)"
    r"|<[!?/][^>]*+(?:>|\Z)",
    re.DOTALL,
)
# Elements whose content is no markup: it ends at the end tag.
_RAW = frozenset(["script", "style", "textarea", "iframe", "noembed", "noframes", "xmp"])
# Elements whose content is no text of the page: programs, ways around the site, and things to press.
_SKIPPED = frozenset(["template", "noscript", "nav", "svg", "math", "select", "button", "object", "audio", "video"])
# How characters are read (furigana), above or after them. They end where another element of ruby begins or ends.
_READINGS = frozenset(["rt", "rp", "rtc"])
_RUBY = _READINGS | {"ruby", "rb"}
# Elements within a line of text. Any other begins a new one.
_INLINE = _RUBY | (_SKIPPED | _RAW) - {"nav", "xmp"}
_INLINE |= frozenset(
    re.findall(
        r"\w+",
        "a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark meter nobr "
        "output picture progress q s samp slot small source span strike strong sub sup time tt u var wbr",
    )
)
_CELLS = frozenset(["td", "th"])
# A number that no character has; the library's own limit of digits is an error.
_HUGE_NUMBER = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{8,});?")


def html_text(page: str) -> str:
    """Return the text of a page of HTML: a paragraph for each block, with blank lines between them.

    Navigation, programs and forms are left out. Line breaks are kept where a browser shows them: at `<br>`, and within
    `<pre>`.
    """
    paragraphs = (_collapsed(paragraph) for paragraph in _paragraphs(page))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _collapsed(paragraph: str) -> str:
    lines = (" ".join(line.split()) for line in paragraph.split("\n"))
    return "\n".join(line for line in lines if line)


def _paragraphs(page: str) -> Iterator[str]:
    found: list[str] = []
    reading: int | None = None  # where in `found` one begins
    preformatted = False
    for text, name, is_end in _tokens(page):
        found.append(text if preformatted else text.replace("\n", " "))
        if name in _RUBY:
            if reading is not None:
                del found[reading:]
            reading = len(found) if name in _READINGS and not is_end else None
        elif name == "br":
            found.append("\n")
        elif name in _CELLS:
            found.append(" ")
        elif name and name not in _INLINE:
            yield "".join(found)
            found, reading = [], None
            if name == "pre":
                preformatted = not is_end
    yield "".join(found)


def _tokens(page: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the text before each tag, with the tag's name in lower case, and whether the tag ends an element."""
    contents = _Contents(page)
    start = 0
    text = ""
    while match := _TOKEN.search(page, start):
        text += page[start : match.start()]
        start = match.end()
        name = (match["name"] or "").lower()
        if not name:  # a comment or a declaration
            continue
        is_end = bool(match["end"]) or match[0].endswith("/>")
        yield _unescaped(text), name, is_end
        text = ""
        if name in _RAW and not match["end"]:
            start = contents.end_of_raw(name, start)
        elif name in _SKIPPED and not is_end:
            start = contents.end(name, start)
    yield _unescaped(text + page[start:]), "", False


class _Contents:
    """Finds where the content of elements ends. What has no end is looked for once: the time stays linear."""

    def __init__(self, page: str) -> None:
        self._page = page
        self._endless_raw: set[str] = set()
        self._endless: set[int] = set()

    def end_of_raw(self, name: str, start: int) -> int:
        """Return where the content that begins at `start` ends, if it is no markup; `start` if it does not end."""
        if name not in self._endless_raw:
            if end := re.compile(f"</{name}", re.IGNORECASE).search(self._page, start):
                return end.start()
            self._endless_raw.add(name)
        return start

    def end(self, name: str, start: int) -> int:
        """Return the end of the element whose content begins at `start`; `start` if it does not end."""
        if start in self._endless:
            return start
        begun, place = [start], start  # elements of this name lie within each other
        while begun and (match := _TOKEN.search(self._page, place)):
            place = match.end()
            found = (match["name"] or "").lower()
            if found in _RAW and not match["end"]:
                place = self.end_of_raw(found, place)
            elif found == name and match["end"]:
                begun.pop()
            elif found == name and not match[0].endswith("/>"):
                begun.append(place)
        self._endless.update(begun)
        return start if begun else place


def _unescaped(text: str) -> str:
    return html.unescape(_HUGE_NUMBER.sub("\ufffd", text)) if "&" in text else text


def markdown_text(text: str) -> str:
    """Return the text of Markdown (CommonMark, with tables), without front matter. Code is kept, images are not."""
    from markdown_it import MarkdownIt

    translator = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    front_matter = _FRONT_MATTER.match(text)
    text = text[front_matter.end() :] if front_matter else text
    return html_text("\n".join(map(translator.render, _blocks(text))))


def _blocks(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _AT_ONCE:
        middle, stop = start + _AT_ONCE, start + 2 * _AT_ONCE
        cut = _BLANK_LINE.search(text, middle, stop) or _LINE_END.search(text, middle, stop)
        stop = cut.end() if cut else stop
        yield text[start:stop]
        start = stop
    yield text[start:]
