"""The text of HTML and of Markdown, which is translated into HTML first. A file is a document.

Python's `html.parser` takes time that grows with the square of the text where tags do not end (60 kB of `<a ` took 30
seconds). This reads markup in one pass, as browsers do: a tag or comment that does not end takes in the rest.
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
# Elements within a line of text. Any other begins a new one.
_INLINE = frozenset(
    re.findall(
        r"\w+",
        "a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark q s samp small "
        "span strike strong sub sup time tt u var wbr",
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
    skipped, depth, preformatted = "", 0, 0
    for text, name, is_end in _tokens(page):
        if skipped:
            depth += (name == skipped) * (-1 if is_end else 1)
            skipped = skipped if depth else ""
            continue
        found.append(text if preformatted else text.replace("\n", " "))
        if name in _SKIPPED and not is_end:
            skipped, depth = name, 1
        elif name == "br":
            found.append("\n")
        elif name in _CELLS:
            found.append(" ")
        elif name and name not in _INLINE:
            yield "".join(found)
            found = []
            if name == "pre":
                preformatted = not is_end
    yield "".join(found)


def _tokens(page: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the text before each tag, with the tag's name in lower case, and whether the tag ends an element."""
    start = 0
    text = ""
    while match := _TOKEN.search(page, start):
        text += page[start : match.start()]
        start = match.end()
        name = (match["name"] or "").lower()
        if not name:  # a comment or a declaration
            continue
        yield _unescaped(text), name, bool(match["end"]) or match[0].endswith("/>")
        text = ""
        if name in _RAW and not match["end"]:
            end = re.compile(f"</{name}", re.IGNORECASE).search(page, start)
            start = end.start() if end else len(page)
    yield _unescaped(text + page[start:]), "", False


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
