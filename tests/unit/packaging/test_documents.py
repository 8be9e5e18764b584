"""What the documents promise: links lead somewhere, and whoever reads a reason in a condition finds what to do."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gptoss_api.conditions import ConditionType, Reason, TrustReason

REPOSITORY = Path(__file__).parents[3]
DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
TROUBLE = REPOSITORY / "docs" / "troubleshooting.md"
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_every_reason_is_explained_once_with_its_conditions_and_what_to_do() -> None:
    rows = ROW.findall(TROUBLE.read_text())

    assert Counter(name for name, _, _ in rows) == Counter({*map(str, Reason), *map(str, TrustReason)})
    for name, where, advice in rows:
        assert {each.strip() for each in where.split(",")} <= set(map(str, ConditionType)), name
        assert len(advice) > 6, name


def test_no_row_of_a_table_of_reasons_is_passed_over() -> None:
    lines = [line for line in TROUBLE.read_text().splitlines() if line.startswith("| `")]

    assert [line for line in lines if not ROW.match(line)] == []


def test_every_link_to_a_file_or_a_heading_of_ours_leads_there() -> None:
    assert len(DOCUMENTS) > 10
    assert [broken for document in DOCUMENTS for broken in _broken(document)] == []


def _broken(document: Path) -> Iterator[str]:
    for target, heading in LINK.findall(document.read_text()):
        file = document.parent / target if target else document
        if not file.exists() or (heading and heading not in _headings(file)):
            yield f"{document.relative_to(REPOSITORY)}: {target}#{heading}"


def _headings(file: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
