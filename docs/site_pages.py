"""Generated pages of the site: home, Python API, config keys, changes, how to cite. A hook of mkdocs.yml.

README.md and the other pages of the project's folder link to `docs/X.md`, and pages of docs to
`../README.md`; the site has all of them in one folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from cobo_dist import _MODULE_OF
from cobo_dist.config.help import describe_tables

ROOT = Path(__file__).resolve().parents[1]
FIRST = (
    "fit",
    "open_run",
    "Run",
    "Config",
    "register",
    "Algorithm",
    "AlgorithmSection",
    "Task",
    "Callback",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs."""
    generated = {
        "index.md": (ROOT / "README.md").read_text(),
        "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(),
        "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "API.md": "\n".join(_api()),
        "KEYS.md": "\n".join(_keys()),
        "CITE.md": "\n".join(_cite()),
    }
    for name, text in generated.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, files: Files, **_: object) -> str:
    """Make links as the site has its pages, by their titles; files of code are named without a link."""
    markdown = re.sub(r"\]\((?:\.\./)?README\.md", "](index.md", markdown)
    markdown = re.sub(r"\]\((?:docs/|\.\./)(?!\.)", "](", markdown)
    markdown = re.sub(r"\[([^\]]+)\]\([^):]+\.(?:py|sh|yaml)\)", r"`\1`", markdown)

    def titled(link: re.Match[str]) -> str:
        page = files.get_file_from_path(link[1])
        title = page.content_string.partition("\n")[0] if page else ""
        return (
            link[0].replace(link[0].partition("]")[0], f"[{title.removeprefix('# ')}")
            if title
            else link[0]
        )

    return re.sub(r"\[(?:docs/)?\w+\.md\]\((\w+\.md)(?:#[\w-]+)?\)", titled, markdown)


def _api() -> Iterator[str]:
    yield "# Python API\n\nIn use: [PYTHON.md](PYTHON.md), [EXTENDING.md](EXTENDING.md)."
    yield "All names are in `cobo_dist`.\n"
    for name in (*FIRST, *sorted(set(_MODULE_OF) - set(FIRST))):
        yield f"::: {_defined_in(name)}.{name}\n"


def _defined_in(name: str) -> str:
    """The module that defines a name: `register` is defined below the module that completes it."""
    return "cobo_dist.registry" if name == "register" else _module(name)


def _module(name: str) -> str:
    import cobo_dist

    return str(getattr(getattr(cobo_dist, name), "__module__", _MODULE_OF[name]))


def _keys() -> Iterator[str]:
    yield "# Config keys\n\nEvery key, as `python -m cobo_dist.train --help all` prints it."
    yield "How values are read: [USAGE.md](USAGE.md#settings)."
    section = ""
    for topic, title, rows in describe_tables():
        if topic.partition(".")[0] != section:
            section = topic.partition(".")[0]
            yield f"\n## {section}"
        yield (f"\n### {topic}" if "." in topic else "") + f"\n\n{_text(title)}\n"
        if rows:
            yield "| key | type | default | meaning |\n|---|---|---|---|"
        for key, kind, default, meaning in rows:
            cells = map(_text, (kind.replace("|", ", "), default.removeprefix("default "), meaning))
            yield f"| `{key}` | {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Return text in which Markdown and HTML see no marks."""
    return re.sub(r"[<>&|*_`\[\]]", lambda mark: f"&#{ord(mark[0])};", text)


def _cite() -> Iterator[str]:
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = facts["preferred-citation"]
    authors = " and ".join(
        f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]
    )
    yield f"# Cite\n\n{facts['message']}"
    yield f"Name the version of this software, too: it is {facts['version']}.\n\n```text"
    yield "@inproceedings{hashemi2024cobo,"
    yield f"  title     = {{{paper['title']}}},\n  author    = {{{authors}}},"
    yield f"  booktitle = {{{paper['collection-title']}}},\n  year      = {{{paper['year']}}},"
    yield f"  note      = {{{paper['identifiers'][0]['value']}}},\n}}\n```"
    yield "\n`CITATION.cff` in the project's folder has the same for tools that read it."
