"""Parses the documentation pages: code blocks, links and headings."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import CONTRIBUTING, ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", CONTRIBUTING, *sorted(DOCS.glob("*.md"))]
QUICKSTART = DOCS / "quickstart.md"
COMMANDS = frozenset({"bash", "python"})
# A block that is not run must say why; the reason starts with one of these words.
REASONS = ("network", "hardware", "minutes", "docker")

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.*?) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A fenced code block; `reason` says why no test runs it."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def runs(self) -> bool:
        """Whether it is a command, which a test runs."""
        return self.language in COMMANDS and self.reason is None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def parse_blocks(page: Path) -> list[CodeBlock]:
    """All code blocks of a page, in order."""
    text = page.read_text()
    return [
        CodeBlock(
            page,
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["text"],
            match["reason"],
        )
        for match in _FENCE.finditer(text)
    ]


def read_prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def find_links(page: Path) -> list[str]:
    """The targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", read_prose(page))


def heading_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, which can follow `#` in a link to it."""
    headings = re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
