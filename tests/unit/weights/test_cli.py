"""`gptoss weights`: what it prints, how it ends, and how little it loads."""

import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from gptoss_cli.weights import _Lines, weights
from gptoss_weights import materialise
from gptoss_weights.materialise import PullProgress
from gptoss_weights.sources import SourceSettings
from tests.unit.weights.builders import MODEL, model


def run(*arguments, code=0):
    found = CliRunner().invoke(weights, [str(argument) for argument in arguments], catch_exceptions=False)
    assert found.exit_code == code, found.output
    return found


def run_json(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def signed(tmp_path):
    made = model(tmp_path / "weights", shard_bytes=1000)
    run("keygen", tmp_path / "key")
    made.signed = run_json("sign", made.folder, "--model", MODEL, "--key", tmp_path / "key")
    made.key = tmp_path / "key.pub"
    return made


def test_the_way_from_a_key_to_a_verified_copy(signed, tmp_path):
    found = run_json("verify", signed.folder, "--key", signed.key, "--model", MODEL)
    assert found["manifestDigest"] == signed.signed["manifestDigest"]
    assert found["signer"] == signed.signed["signer"]
    for place in (signed.folder, signed.folder / "model.sig", f"file://{signed.folder}"):
        assert run_json("inspect", place, "--key", signed.key)["verified"] is True
    assert run_json("inspect", signed.folder)["verified"] is False
    copy = run_json("pull", f"file://{signed.folder}", "--to", tmp_path / "to", "--model", MODEL, "--key", signed.key)
    assert copy["bytes"] == copy["fetchedBytes"] > 2000
    pinned = ["--manifest-digest", copy["manifestDigest"]]
    again = run_json("pull", f"file://{signed.folder}", "--to", tmp_path / "to", "--model", MODEL, *pinned)
    assert (again["path"], again["fetchedBytes"]) == (copy["path"], 0)
    assert (again["replacedFiles"], again["removedCopies"]) == ([], [])


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(capsys):
    now = 0.0
    lines = _Lines(quiet=False, clock=lambda: now)
    for second in range(0, 31, 5):
        now = float(second)
        lines.tell("pulling, 1 of 9 files", second * 2**30 // 10, 10 * 2**30)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert told[0] == "pulling, 1 of 9 files: 1.00 of 10.00 GiB, 102 MiB/s, 90 s left"
    _Lines(quiet=True, clock=lambda: 100.0).tell("pulling", 1, 2)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_tells_rate_and_time_left(signed, tmp_path, monkeypatch):
    real = materialise.pull

    def slowly(uri, *, progress, **options):
        for gib in (1, 2):
            progress(PullProgress(bytes_done=gib * 2**30, bytes_total=4 * 2**30, files_done=gib, files_total=9))
        return real(uri, **options)

    monkeypatch.setattr(materialise, "pull", slowly)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    shown = run("pull", f"file://{signed.folder}", "--to", tmp_path / "to", "--model", MODEL, "--key", signed.key)
    last = shown.stderr.rpartition("pulling, ")[2]
    assert re.match(r"2 of 9 files .* 2\.0/4\.0 GiB [\d.]+ [kMGTPE]?B/s \d:\d\d:\d\d", last), shown.stderr


def test_text_for_people(signed):
    assert f"subject: {MODEL}" in run("inspect", signed.folder).stdout
    assert "ignored   README.md" in run("inspect", signed.folder).stdout
    assert "unsignedFiles: -" in run("verify", signed.folder, "--key", signed.key).stdout


def test_names_of_planted_files_are_no_commands_to_a_terminal(signed):
    (signed.folder / "\x1b[2Jall-good.json").write_text("{}")
    found = run("verify", signed.folder, "--key", signed.key).stdout
    assert "\x1b" not in found
    assert "\\x1b[2Jall-good.json" in found
    (signed.folder / "\x1b[2Jlink").symlink_to("config.json")
    assert (
        "\x1b" not in run("sign", signed.folder, "--model", MODEL, "--key", signed.key.with_name("key"), code=1).output
    )


def test_exit_codes_and_reasons(signed, tmp_path):
    verify = ["verify", signed.folder, "--key", signed.key]
    pull = ["pull", "--to", tmp_path / "to", "--model", MODEL, "--key", signed.key]
    run("verify", signed.folder, code=2)
    run("pull", "s3://models/x", "--to", tmp_path / "to", "--model", MODEL, code=2)
    assert run_json(*verify, "--model", "other", code=3)["error"]["reason"] == "SubjectMismatch"
    assert run_json(*pull, "http://x", code=3)["error"]["reason"] == "SourceNotAllowed"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    elsewhere = ["pull", "--to", tmp_path / "open", "--model", MODEL, "--key", signed.key]
    assert run_json(*elsewhere, f"file://{signed.folder}", code=1)["error"]["reason"] == "StorageFailed"
    assert run_json("keygen", tmp_path / "key", code=1)["error"]["reason"] == "SigningFailed"
    shard = signed.folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    error = run_json(*verify, code=3)["error"]
    assert (error["reason"], error["file"]) == ("DigestMismatch", shard.name)
    shard.unlink()
    assert run_json(*verify, code=1)["error"]["reason"] == "MissingFile"
    (signed.folder / "model.sig").unlink()
    found = run(*verify, code=3)
    assert "Unsigned: there is no model.sig" in found.stderr


def test_a_pull_leaves_its_receipt_or_its_reason_in_the_termination_log(signed, tmp_path):
    log, private = tmp_path / "termination-log", tmp_path / "to"
    pull = ["pull", f"file://{signed.folder}", "--to", private, "--readable", "--termination-log", log]
    run(*pull, "--model", "other", "--key", signed.key, code=3)
    assert json.loads(log.read_text())["error"]["reason"] == "SubjectMismatch"
    assert len(log.read_bytes()) < 4096
    run(*pull, "--model", MODEL, "--key", signed.key)
    assert json.loads(log.read_text())["receipt"]["manifestDigest"] == signed.signed["manifestDigest"]


def test_a_receipt_too_long_for_a_termination_log_loses_its_lists(signed, tmp_path, monkeypatch):
    log, private = tmp_path / "termination-log", tmp_path / "to"
    pull = ["pull", f"file://{signed.folder}", "--to", private, "--termination-log", log]
    run(*pull, "--model", MODEL, "--key", signed.key)
    whole = json.loads(log.read_text())["receipt"]
    assert whole["replacedFiles"] == whole["removedCopies"] == []
    monkeypatch.setattr("gptoss_cli.weights._LONGEST_TERMINATION", 100)
    run(*pull, "--model", MODEL, "--key", signed.key)
    told = json.loads(log.read_text())["receipt"]
    assert told["manifestDigest"] == whole["manifestDigest"]
    assert set(whole) - set(told) == {"replacedFiles", "removedCopies"}


def test_a_termination_log_that_can_not_be_written_is_told_and_changes_no_outcome(signed, tmp_path):
    pull = ["pull", f"file://{signed.folder}", "--to", tmp_path / "to", "--termination-log", tmp_path / "no" / "log"]
    refused = run(*pull, "--model", "other", "--key", signed.key, code=3)
    assert "SubjectMismatch" in refused.stderr
    pulled = run(*pull, "--model", MODEL, "--key", signed.key)
    assert f"manifestDigest: {signed.signed['manifestDigest']}" in pulled.stdout
    for found in (refused, pulled):
        assert "log can't be written: No such file or directory" in found.stderr


def test_a_place_that_is_not_there_is_wrong_usage_and_no_verdict(tmp_path):
    assert "is no folder or file here" in run("inspect", tmp_path / "nowhere", code=2).stderr
    assert "s3://" in run("inspect", "models/gpt-oss-20b", code=2).stderr


def test_a_pull_through_a_cache_says_what_came_of_it(signed, tmp_path):
    pull = ["pull", f"file://{signed.folder}", "--model", MODEL, "--key", signed.key, "--to"]
    cache = ["--cache", tmp_path / "cache"]
    first = run_json(*pull, tmp_path / "one", *cache, "--cache-max-bytes", "1Gi")
    second = run_json(*pull, tmp_path / "two", *cache)
    assert [each["fetchedBytes"] for each in (first, second)] == [first["bytes"], 0]
    told = {name: value for name, value in second.items() if name.startswith("cache")}
    assert told == {
        "cacheUsed": True,
        "cacheProblem": None,
        "cacheReplaced": 0,
        "cacheReplacedFiles": [],
        "cacheRemovedCopies": [],
    }
    small = run_json(*pull, tmp_path / "three", *cache[:1], tmp_path / "small", "--cache-max-bytes", "1")
    assert small["cacheUsed"] is False
    assert small["cacheProblem"].startswith("NoSpace: ")
    wrong = run_json(*pull, tmp_path / "four", *cache, "--cache-max-bytes", "much", code=1)["error"]
    assert wrong["message"] == "--cache-max-bytes is 'much'; set it to bytes, such as 214748364800 or 200Gi"
    run(*pull, tmp_path / "four", "--cache-max-bytes", "1Gi", code=2)


def test_file_uris_keep_to_roots_where_there_are_some(signed, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTOSS_WEIGHTS_FILE_ROOTS", str(tmp_path / "elsewhere"))
    assert SourceSettings.from_environment().file_roots
    assert run_json("inspect", f"file://{signed.folder}", code=3)["error"]["reason"] == "SourceNotAllowed"


def test_loads_neither_kopf_nor_kubernetes_nor_aiohttp():
    code = (
        "import sys, gptoss_cli.weights, gptoss_weights.materialise, gptoss_weights.sign, gptoss_weights.folder;"
        "print([m for m in ('kopf', 'kubernetes', 'aiohttp', 'ray', 'torch', 'boto3', 'model_signing', 'sigstore',"
        " 're2') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_reader_that_has_seen_enough_is_no_fault_of_the_storage(signed):
    command = [sys.executable, "-m", "gptoss_cli.main", "weights", "inspect", str(signed.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode != 0
