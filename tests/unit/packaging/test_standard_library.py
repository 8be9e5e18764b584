"""The folder named operator must never be taken for the standard library's module."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]


def test_operator_is_the_standard_librarys_from_the_repository_root():
    code = "import operator; print(operator.__file__); assert operator.itemgetter(0)('x') == 'x'"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).is_relative_to(REPOSITORY / "operator")


def test_no_module_lies_directly_in_the_folders_that_hold_rooms():
    assert [path.name for room in ("operator", "serving") for path in (REPOSITORY / room).glob("*.py")] == []
