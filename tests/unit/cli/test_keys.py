"""Keys: shown once, stored hashed, changed atomically, and understood by the gateway."""

import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from gptoss_cli.exit_codes import ExitCode
from gptoss_cli.keys import keys
from gptoss_gateway.keys import KeyRing


def gptoss(*arguments: str) -> Result:
    return CliRunner().invoke(keys, arguments)


def created(path: Path, tenant: str = "team-a", *more: str) -> str:
    result = gptoss("create", "--file", str(path), "--tenant", tenant, "--namespaces", "ml", *more)
    assert result.exit_code == ExitCode.OK, result.output
    return result.stdout.strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_key_is_printed_once_and_stored_hashed(path: Path):
    key = created(path)
    assert re.fullmatch(r"gptoss-[A-Za-z0-9_-]{43}", key)
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_gateway_knows_the_key(path: Path):
    key = created(path, "team-a", "--models", "gpt-oss-*")
    caller = KeyRing.read(path).find(key)
    assert caller is not None
    assert (caller.tenant, caller.namespaces, caller.models) == ("team-a", {"ml"}, ("gpt-oss-*",))
    assert KeyRing.read(path).find(key + "x") is None


def test_a_second_key_joins_its_tenant(path: Path):
    first = created(path)
    result = gptoss("create", "--file", str(path), "--tenant", "team-a", "--namespaces", "ml,web", "--json")
    second = json.loads(result.stdout)
    ring = KeyRing.read(path)
    assert ring.find(first) == ring.find(second["key"])
    (tenant,) = yaml.safe_load(path.read_text())["tenants"]
    assert tenant["namespaces"] == ["ml", "web"]
    assert len(tenant["keys"]) == 2


def test_a_new_tenant_needs_namespaces(path: Path):
    result = gptoss("create", "--file", str(path), "--tenant", "team-a")
    assert result.exit_code == ExitCode.USAGE
    assert "--namespaces" in result.output
    assert not path.exists()


def test_list_shows_beginnings_of_hashes(path: Path):
    created(path)
    (digest,) = yaml.safe_load(path.read_text())["tenants"][0]["keys"]
    shown = gptoss("list", "--file", str(path)).stdout
    assert "team-a  namespaces=ml  models=*" in shown
    assert digest[7:19] in shown
    assert json.loads(gptoss("list", "--file", str(path), "--json").stdout)[0]["keys"] == [digest]


def test_limits_are_kept_changed_one_by_one_and_taken_away(path: Path):
    key = created(path, "team-a", "--requests-per-minute", "60", "--concurrent", "4", "--tokens-per-minute", "9")
    limits = KeyRing.read(path).find(key).limits
    assert (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent) == (60, 9, 4)
    assert "requestsPerMinute=60  tokensPerMinute=9  concurrent=4" in gptoss("list", "--file", str(path)).stdout
    created(path, "team-a", "--concurrent", "8", "--priority", "5", "--tokens-per-minute", "0")
    assert KeyRing.read(path).find(key).priority == 5
    assert "concurrent=8  priority=5" in gptoss("list", "--file", str(path)).stdout
    assert yaml.safe_load(path.read_text())["tenants"][0]["limits"] == {"requestsPerMinute": 60, "concurrent": 8}
    created(path, "team-a", "--concurrent", "0", "--requests-per-minute", "0")
    assert "limits" not in yaml.safe_load(path.read_text())["tenants"][0]
    assert gptoss("create", "--file", str(path), "--tenant", "x", "-n", "ml", "--concurrent", "-1").exit_code != 0


@pytest.mark.parametrize("by", ["key", "hash"])
def test_revoke_takes_the_key_or_its_hash(path: Path, by: str):
    kept, key = created(path), created(path)
    digest = yaml.safe_load(path.read_text())["tenants"][0]["keys"][1]
    result = gptoss("revoke", "--file", str(path), key if by == "key" else digest[7:19])
    assert result.exit_code == ExitCode.OK, result.output
    ring = KeyRing.read(path)
    assert ring.find(key) is None
    assert ring.find(kept) is not None


def test_a_tenant_goes_with_its_last_key(path: Path):
    key = created(path)
    result = gptoss("revoke", "--file", str(path), key, "--json")
    assert json.loads(result.stdout)["tenantRemoved"] is True
    assert yaml.safe_load(path.read_text()) == {"tenants": []}


def test_revoking_an_unknown_key_changes_nothing(path: Path):
    created(path)
    before = path.read_bytes()
    assert gptoss("revoke", "--file", str(path), "gptoss-unknown").exit_code == ExitCode.FAILED
    assert gptoss("revoke", "--file", str(path), "12ab").exit_code == ExitCode.USAGE
    assert path.read_bytes() == before


def test_a_file_of_another_kind_is_left_alone(path: Path):
    path.write_text("- just\n- a list\n")
    result = gptoss("create", "--file", str(path), "--tenant", "a", "--namespaces", "ml")
    assert result.exit_code == ExitCode.FAILED
    assert "is not a keys file" in result.output
    assert path.read_text() == "- just\n- a list\n"


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("{name: a, keys: 5, namespaces: [ml]}", "keys"),
        ("{name: a, keys: ['sha256:12'], namespaces: [ml]}", "keys.0"),
        ("{name: a, keys: [], namespaces: ml}", "namespaces"),
        ("{name: a, keys: [], namespaces: [ml], limits: 3}", "limits"),
        ("{keys: [], namespaces: [ml]}", "name"),
    ],
)
def test_a_file_that_the_gateway_refuses_is_named_with_the_field_and_left_alone(path: Path, entry: str, field: str):
    path.write_text(text := f"tenants: [{entry}]\n")
    for command in (["list"], ["revoke", "0123456789ab"], ["create", "--tenant", "b", "-n", "ml"]):
        result = gptoss(command[0], "--file", str(path), *command[1:])
        assert result.exit_code == ExitCode.FAILED, result.output
        (line,) = result.output.splitlines()
        assert f"{field}: " in line
    assert path.read_text() == text


@pytest.mark.parametrize("options", [("--tenant", "", "-n", "ml"), ("--tenant", "b", "-n", "Not_A_Namespace")])
def test_no_key_is_made_that_the_gateway_would_refuse(path: Path, options: tuple[str, ...]):
    key = created(path)
    before = path.read_bytes()
    result = gptoss("create", "--file", str(path), *options)
    assert result.exit_code == ExitCode.USAGE
    assert "a gateway would refuse that" in result.output
    assert path.read_bytes() == before
    assert KeyRing.read(path).find(key) is not None


def test_a_folder_that_can_not_be_written_to_is_a_sentence():
    result = gptoss("create", "--file", "/proc/keys.yaml", "--tenant", "a", "-n", "ml")
    assert result.exit_code == ExitCode.FAILED
    assert "/proc/keys.yaml can't be written" in result.output


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch):
    created(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("gptoss_cli.keys.os.fsync", full)
    assert gptoss("create", "--file", str(path), "--tenant", "b", "--namespaces", "ml").exit_code != ExitCode.OK
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.yaml"]


def test_writers_at_once_lose_nothing(path: Path):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: _create(path, f"team-{number}"), range(16)))
    assert all(results)
    ring = KeyRing.read(path)
    assert len(yaml.safe_load(path.read_text())["tenants"]) == 16
    assert ring is not None


def _create(path: Path, tenant: str) -> bool:
    # The callback itself: click's test runner swaps the process's standard output and is not for threads.
    options = {parameter.name: None for parameter in keys.commands["create"].params}
    given = {"path": path, "tenant": tenant, "namespaces": ("ml",), "models": (), "as_json": True}
    keys.commands["create"].callback(**(options | given))  # type: ignore[misc]
    return True
