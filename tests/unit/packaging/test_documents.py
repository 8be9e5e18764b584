"""What the documents promise: links lead somewhere, and whoever reads a reason in a condition finds what to do."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gptoss_api.conditions import ConditionType, Reason, TrustReason
from gptoss_gateway.errors import RequestError

REPOSITORY = Path(__file__).parents[3]
DOCUMENTS = sorted(file for pattern in ("*.md", "docs/**/*.md", "charts/*/*.md") for file in REPOSITORY.glob(pattern))
TROUBLE = REPOSITORY / "docs" / "troubleshooting.md"
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
CURL = re.compile(r"curl (?:[^\\\n]|\\\n)+")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def anchors_of(file: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def test_every_reason_is_explained_once_with_its_conditions_and_what_to_do() -> None:
    rows = ROW.findall(TROUBLE.read_text())

    assert Counter(name for name, _, _ in rows) == Counter({*map(str, Reason), *map(str, TrustReason)})
    for name, where, advice in rows:
        assert {each.strip() for each in where.split(",")} <= set(map(str, ConditionType)), name
        assert len(advice) > 6, name


def test_no_row_of_a_table_of_reasons_is_passed_over() -> None:
    lines = [line for line in TROUBLE.read_text().splitlines() if line.startswith("| `")]

    assert [line for line in lines if not ROW.match(line)] == []


def test_every_code_of_an_error_is_explained_with_its_status() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| ([^|]+) \| [^|]{6,} \|$", TROUBLE.read_text(), re.MULTILINE)
    explained = {(int(status), code) for all_, codes in rows for status in all_.split(",") for code in _quoted(codes)}

    assert {(error.status, error.code) for error in _request_errors(RequestError)} <= explained


def test_every_link_to_a_file_or_a_heading_of_ours_leads_there() -> None:
    assert len(DOCUMENTS) > 10
    assert [broken for document in DOCUMENTS for broken in _broken(document)] == []


def test_every_request_with_a_body_says_that_it_is_json() -> None:
    """The gateway refuses what curl would send otherwise."""
    requests = [curl for each in DOCUMENTS for curl in CURL.findall(each.read_text()) if " -d " in curl]

    assert len(requests) > 1
    assert [curl for curl in requests if "Content-Type: application/json" not in curl] == []


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def _request_errors(root: type[RequestError]) -> Iterator[type[RequestError]]:
    """Yield every kind of error that is raised as it is: those that have a code of their own."""
    if "code" in vars(root):
        yield root
    for each in root.__subclasses__():
        yield from _request_errors(each)


def _broken(document: Path) -> Iterator[str]:
    for target, heading in LINK.findall(document.read_text()):
        file = document.parent / target if target else document
        if not file.exists() or (heading and heading not in anchors_of(file)):
            yield f"{document.relative_to(REPOSITORY)}: {target}#{heading}"
