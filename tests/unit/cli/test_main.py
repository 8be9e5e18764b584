"""The façade: cheap help, lazy commands, exit codes."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from gptoss_cli.exit_codes import ExitCode
from gptoss_cli.main import main

HEAVY = ("kopf", "kubernetes", "aiohttp", "ray", "vllm", "torch", "boto3", "rich.table")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from gptoss_cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
    for name in ("fit", "keys", "local", "status", "suspend", "wake", "weights"):
        assert f"  {name} " in done.stdout


def test_keys_need_no_kubernetes():
    code = (
        "import sys\n"
        "sys.modules['kubernetes'] = sys.modules['kopf'] = sys.modules['aiohttp'] = None\n"
        "from gptoss_cli.main import main\n"
        "main(['keys', '--help'])\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith(("gptoss_cli.wake", "gptoss_cli.cluster"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("gptoss_kube")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)
    result = CliRunner().invoke(main, ["wake", "assistant"])
    assert result.exit_code == ExitCode.FAILED
    assert "is not installed: install gptoss-operator with the extra" in result.output


@pytest.mark.parametrize("command", ["fit", "keys", "local", "status", "suspend", "wake", "weights"])
def test_every_command_can_be_loaded(command: str):
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == ExitCode.OK
    assert "Usage: main" in result.output


def test_an_unknown_command_is_wrong_usage():
    assert CliRunner().invoke(main, ["serve"]).exit_code == ExitCode.USAGE


def test_ctrl_c_has_its_own_code(monkeypatch: pytest.MonkeyPatch):
    @click.command()
    def hang() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "get_command", lambda _, __: hang)
    assert CliRunner().invoke(main, ["hang"]).exit_code == ExitCode.INTERRUPTED


def test_no_cluster_is_a_sentence(tmp_path):
    result = CliRunner().invoke(main, ["status", "--kubeconfig", str(tmp_path / "nowhere")])
    assert result.exit_code == ExitCode.FAILED
    assert "nowhere does not exist" in result.output
    assert "Traceback" not in result.output
