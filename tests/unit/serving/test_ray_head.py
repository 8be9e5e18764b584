"""What is settled before one machine's Ray starts: secrets, ports, and paths short enough."""

import hashlib
import os
import stat
import subprocess
import sys
import time
import uuid
from pathlib import Path

from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_cli.local.ray_head import RayHead, clean

_NODE_ID = 56  # characters of a Ray node's id
_LONGEST_UNIX_SOCKET = 107  # unix(7): 108 bytes with the one that ends it
_LONGEST_SOCKET = 97  # HAProxy 2.8: "socket path too long (max 97)"


def test_haproxys_socket_path_fits_however_deep_the_base_is(tmp_path: Path) -> None:
    head = RayHead.prepare(tmp_path / ("a" * 40) / "b", gateway_tokens=("token",))
    environment = head.node_environment()

    for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
        socket = Path(environment[name])
        assert socket.is_relative_to(head.temporary)
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


def test_the_pinned_ray_lets_a_replaced_haproxy_finish_the_longest_stream(tmp_path: Path) -> None:
    """Its own default ends streams two minutes after any replica came or went."""
    head = RayHead.prepare(tmp_path / "ray", gateway_tokens=("token",))
    source = "from ray.serve._private.haproxy import HAProxyConfig as C"
    told = f"{source}; print(C().hard_stop_after_s, C().close_spread_time_s)"
    python = [sys.executable, "-c", told]
    finished = subprocess.run(
        python, env={**os.environ, **head.node_environment()}, capture_output=True, text=True, timeout=300, check=True
    )

    hard_stop, close_spread = map(int, finished.stdout.split()[-2:])
    assert hard_stop == MAX_REQUEST_SECONDS
    assert close_spread < 60, "idle connections would keep the replaced one for as long"


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


def test_the_engines_sockets_are_in_the_heads_own_folder_and_their_paths_short_enough(tmp_path: Path) -> None:
    head = RayHead.prepare(tmp_path / "ray", gateway_tokens=("token",))
    environment = head.node_environment()

    for name in ("TMPDIR", "VLLM_RPC_BASE_PATH"):
        assert Path(environment[name]).parent == head.temporary
        assert len(environment[name]) + len("/") + len(str(uuid.uuid4())) <= _LONGEST_UNIX_SOCKET


def test_cleaning_removes_the_shared_memory_of_what_it_ends_and_of_nobody_else(tmp_path: Path) -> None:
    head = RayHead.prepare(tmp_path / "ray", gateway_tokens=("token",))
    names = [Path(f"/dev/shm/gptoss-test-{uuid.uuid4()}") for _ in range(2)]
    for name in names:
        name.write_bytes(b"x" * 4096)
    try:
        _sleeper(head, before=f"import mmap, os; kept = mmap.mmap(os.open('{names[0]}', os.O_RDWR), 0)", maps=names[0])

        clean(head)

        assert [name.exists() for name in names] == [False, True]
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def _sleeper(head: RayHead, *, before: str = "", maps: Path | None = None) -> int:
    """Start a process that is nobody's child, with the head's folder on its command line, as HAProxy has."""
    sleep = f"{before}\nimport time; time.sleep(60)  # {head.temporary}/h/haproxy.cfg"
    start = (
        "import subprocess, sys; quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}; "
        "print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], **quiet).pid)"
    )
    found = subprocess.run([sys.executable, "-c", start, sleep], check=True, capture_output=True, text=True)
    pid = int(found.stdout)
    deadline = time.monotonic() + 30
    while not _runs(pid) or (maps is not None and str(maps) not in Path(f"/proc/{pid}/maps").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pid


def _runs(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"
