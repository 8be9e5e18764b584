"""What is settled before one machine's Ray starts: secrets, ports, and paths short enough."""

import hashlib
import stat
import subprocess
import sys
import time
from pathlib import Path

from gptoss_cli.local.ray_head import RayHead, clean

_NODE_ID = 56  # characters of a Ray node's id
_LONGEST_SOCKET = 97  # HAProxy 2.8: "socket path too long (max 97)"


def test_haproxys_socket_path_fits_however_deep_the_base_is(tmp_path: Path) -> None:
    head = RayHead.prepare(tmp_path / ("a" * 40) / "b", gateway_tokens=("token",))
    socket = Path(head.node_environment()["RAY_SERVE_HAPROXY_SOCKET_PATH"])

    assert len(str(socket.parent / ("n" * _NODE_ID) / socket.name)) <= _LONGEST_SOCKET


def test_secrets_are_in_private_files_and_never_on_the_command_line(tmp_path: Path) -> None:
    head = RayHead.prepare(
        tmp_path / "ray", gateway_tokens=("gateway-secret",), environment={"AWS_SECRET_ACCESS_KEY": "store-secret"}
    )
    line = " ".join(head.command())

    assert not any(secret in line for secret in (head.token, "gateway-secret", "store-secret"))
    assert (head.base / "gateway-tokens").read_text() == f"sha256:{hashlib.sha256(b'gateway-secret').hexdigest()}\n"
    for file in (head.token_file, head.base / "node.json", head.base / "gateway-tokens"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_second_start_keeps_the_token_and_two_bases_never_share_a_folder(tmp_path: Path) -> None:
    first = RayHead.prepare(tmp_path / "one", gateway_tokens=("token",))
    token = first.token

    assert RayHead.prepare(tmp_path / "one", gateway_tokens=("token",)).token == token
    assert first.temporary != RayHead.prepare(tmp_path / "two", gateway_tokens=("token",)).temporary


def test_cleaning_ends_an_orphan_that_names_the_heads_own_folder_and_nobody_else(tmp_path: Path) -> None:
    head = RayHead.prepare(tmp_path / "ray", gateway_tokens=("token",))
    other = RayHead.prepare(tmp_path / "other", gateway_tokens=("token",))
    orphans = [_sleeper(each) for each in (head, other)]
    try:
        clean(head)

        assert not _runs(orphans[0])
        assert _runs(orphans[1])
    finally:
        clean(other)


def _sleeper(head: RayHead) -> int:
    """Start a process that is nobody's child, with the head's folder on its command line, as HAProxy has."""
    sleep = f"import time; time.sleep(60)  # {head.temporary}/h/haproxy.cfg"
    start = (
        "import subprocess, sys; quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}; "
        "print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], **quiet).pid)"
    )
    found = subprocess.run([sys.executable, "-c", start, sleep], check=True, capture_output=True, text=True)
    pid = int(found.stdout)
    deadline = time.monotonic() + 5
    while not _runs(pid):
        assert time.monotonic() < deadline
    return pid


def _runs(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"
