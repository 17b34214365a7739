"""What the site adds to its pages: README as the first one, and mathematics as MathML."""

import re
from pathlib import Path

from latex2mathml.converter import convert

README = Path(__file__).parents[2] / "README.md"
ELSEWHERE = re.compile(r"(?<!!)\[([^\]]*)\]\((?!docs/[a-z_]+\.(?:md|png|svg)|https?:|#)[^)]*\)")
MATHS = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, page, **_) -> str:
    """README stands outside docs/: links into docs/ are kept, those to other files are words."""
    if page.file.src_uri != "index.md":
        return markdown
    return ELSEWHERE.sub(r"\1", README.read_text(encoding="utf-8")).replace("](docs/", "](")


def on_page_content(html: str, **_) -> str:
    """Browsers draw MathML themselves: nothing is fetched, and nothing runs."""

    def drawn(found: re.Match) -> str:
        latex = found[3].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
        return convert(latex, display="block" if found[2] == "[" else "inline")

    return MATHS.sub(drawn, html)
