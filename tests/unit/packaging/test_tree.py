"""What must not stand in the tree: download hosts, which mirrors replace, and paths of one machine."""

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
# Written in pieces, so that this file doesn't find itself.
HOSTS = ("files.python" + "hosted.org", "py" + "pi.org", "proxy." + "golang.org", "registry." + "npmjs.org")
MACHINE_PATHS = re.compile(r"(?<![\w./-])/(?:root|home/\w+|Users/\w+|wo" + r"rk)/[\w.]")


def test_no_file_names_a_download_host():
    assert _files_with(lambda text: any(host in text for host in HOSTS)) == []


def test_no_file_names_a_path_of_somebodys_machine():
    assert _files_with(lambda text: MACHINE_PATHS.search(text) is not None) == []


def test_every_locked_package_is_pinned_by_hash():
    lock = (REPOSITORY / "locks" / "dev.txt").read_text()
    packages = re.findall(r"^[a-z0-9][^\n]*?==[^\n]*", lock, re.MULTILINE)
    assert len(packages) > 100
    assert all(package.endswith("\\") for package in packages)
    assert lock.count("--hash=sha256:") >= len(packages)


def _files_with(found) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]
    assert len(names) > 50
    return [name for name in names if found((REPOSITORY / name).read_text(errors="ignore"))]
