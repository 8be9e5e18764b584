"""Workflows run what was reviewed, with no more rights than a job needs: by zizmor's rules and ours."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.packaging.test_tree import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.y*ml"))
USES = re.compile(r"^\s*(?:- )?uses: (?P<action>[^@\s]+)@(?P<commit>\S+)(?P<version> # v\d+\.\d+\.\d+)?$", re.MULTILINE)
CI = ".github/workflows/ci.yaml"
WRITES = {"publish.yaml": {"packages", "id-token", "attestations"}}


def test_zizmor_finds_nothing():
    program = Path(sys.executable).with_name("zizmor")
    command = [str(program), "--offline", "--no-config", "--persona=pedantic", "--min-severity=low", ".github"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_action_is_pinned_by_a_whole_commit_and_says_which_release_that_is():
    text = "".join(path.read_text() for path in WORKFLOWS)
    pins = [found.groupdict() for found in USES.finditer(text)]
    assert len(pins) == len(re.findall(r"\buses: (?!\$/)", text)) > 10
    for pin in pins:
        assert re.fullmatch(r"[0-9a-f]{40}", pin["commit"]), f"{pin['action']} is pinned by {pin['commit']}"
        assert pin["version"], f"{pin['action']} does not say its release"
    assert len({(pin["action"], pin["commit"]) for pin in pins}) == len({pin["action"] for pin in pins})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_reads_only_unless_a_job_says_otherwise(path: Path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        if "uses" in job:
            assert job == {"permissions": {"contents": "read"}, "uses": f"$/{CI}"}, (
                "what is called has no more rights, or secrets"
            )
            continue
        assert job["timeout-minutes"] <= 120
        rights: dict[str, Any] = job.get("permissions", {})
        assert {name for name, right in rights.items() if right != "read"} <= WRITES.get(path.name, set())
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", ""), "an expression in a script is an injection; pass it by env"


def test_only_a_tag_publishes():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        writes = [job for job in workflow["jobs"].values() if "write" in job.get("permissions", {}).values()]
        if writes:
            assert workflow[True] == {"push": {"tags": ["v*.*.*"]}}, "a bare `on` is YAML's true"


def test_nothing_is_published_that_has_not_passed_the_tests_of_every_change():
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "publish.yaml").read_text())["jobs"]
    (tests,) = [name for name, job in jobs.items() if job.get("uses") == f"$/{CI}"]

    def waits_for_tests(name: str) -> bool:
        # With an `if` of its own, a job can run after one that failed.
        needs = jobs[name].get("needs", [])
        needed = [needs] if isinstance(needs, str) else needs
        return "if" not in jobs[name] and (tests in needed or any(map(waits_for_tests, needed)))

    assert all(map(waits_for_tests, set(jobs) - {tests}))
    ci = yaml.safe_load((REPOSITORY / CI).read_text())
    assert "workflow_call" in ci[True]
    assert [step["run"] for job in ci["jobs"].values() for step in job["steps"] if "run" in step] == [".ci/run"]
    assert not any("if" in each for job in ci["jobs"].values() for each in (job, *job["steps"]))
    # In a call, github.workflow is the caller: both in one group would cancel each other.
    assert "github.workflow" not in ci["concurrency"]["group"]


def test_all_that_is_published_is_signed_and_has_its_provenance_beside_it():
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "publish.yaml").read_text())["jobs"]
    published = {name: job for name, job in jobs.items() if "write" in job["permissions"].values()}
    assert set(published) == {"images", "chart"}
    for job in published.values():
        assert job["permissions"]["attestations"] == "write"
        (signs,) = [step for step in job["steps"] if "cosign sign --yes" in step.get("run", "")]
        (attests,) = [step for step in job["steps"] if "attest-build-provenance" in step.get("uses", "")]
        assert attests["with"]["push-to-registry"] is True
        source = re.fullmatch(r"\$\{\{ steps\.(\w+)\.outputs\.digest \}\}", attests["with"]["subject-digest"])
        assert source is not None
        (pushes,) = [step for step in job["steps"] if step.get("id") == source[1]]
        assert pushes is signs or attests["with"]["subject-digest"] in signs["env"]["IMAGE"]


def test_images_are_published_with_what_is_in_them_and_how_they_were_built():
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "publish.yaml").read_text())["jobs"]
    (builds,) = [step["with"] for step in jobs["images"]["steps"] if "build-push-action" in step.get("uses", "")]
    assert (builds["push"], builds["sbom"], builds["provenance"]) == (True, True, "mode=max")


def test_the_published_matrix_builds_files_that_exist():
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "publish.yaml").read_text())["jobs"]
    matrix = jobs["images"]["strategy"]["matrix"]["include"]
    assert {entry["file"] for entry in matrix} == {path.stem for path in (REPOSITORY / "docker").glob("*.Dockerfile")}
    assert len({(entry["image"], entry["suffix"]) for entry in matrix}) == len(matrix), "one would replace another"
    for entry in matrix:
        for lock in re.findall(r"LOCK=(\S+)", entry["arguments"]):
            assert (REPOSITORY / "locks" / lock).is_file()
    # The sed of the chart's job must find its line.
    assert '\n  registry: ""\n' in (REPOSITORY / "charts" / "gptoss-operator" / "values.yaml").read_text()
