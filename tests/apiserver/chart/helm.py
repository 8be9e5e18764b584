"""The real Helm against the test control plane, and what the chart renders."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptoss_cli.local.assets import helm_program
from gptoss_cli.local.control_plane import ControlPlane
from tests.controlplane import REPOSITORY

CHART = REPOSITORY / "charts" / "gptoss-operator"
EXAMPLES = REPOSITORY / "examples" / "helm"
VALUES_FILES = sorted(EXAMPLES.glob("*.yaml"))
RELEASE = "gptoss"
NAME = f"{RELEASE}-gptoss-operator"
WITHOUT_CRDS = {"crds": {"enabled": False}}
Raw = dict[str, Any]


class HelmError(Exception):
    """Helm said no; the message is what it said."""


@dataclass(frozen=True, kw_only=True)
class Helm:
    """Helm with folders of its own, so that nobody's plugins or repositories take part."""

    folder: Path
    plane: ControlPlane

    def run(self, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        command = [str(helm_program()), *arguments]
        if values is not None:
            image = self.folder / "image.yaml"
            image.write_text("image: {registry: images.test}")
            command += ["--values", str(image), "--values", "-"]
        done = subprocess.run(
            command,
            input=json.dumps(values) if values is not None else "",
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "KUBECONFIG": str(self.plane.kubeconfig),
                "HELM_CACHE_HOME": str(self.folder / "cache"),
                "HELM_CONFIG_HOME": str(self.folder / "config"),
                "HELM_DATA_HOME": str(self.folder / "data"),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise HelmError(done.stderr + done.stdout)
        return done.stdout

    def render(self, namespace: str, *, values: Mapping[str, Any] | None = None) -> list[Raw]:
        text = self.run("template", RELEASE, str(CHART), "--namespace", namespace, values=values or {})
        return [document for document in yaml.safe_load_all(text) if document]

    def install(self, namespace: str, values: Mapping[str, Any], *arguments: str) -> str:
        command = ("upgrade", "--install", RELEASE, str(CHART), "--namespace", namespace, *arguments)
        return self.run(*command, values=values)

    def uninstall(self, namespace: str) -> None:
        self.run("uninstall", RELEASE, "--namespace", namespace, "--ignore-not-found")


def of_kind(objects: list[Raw], kind: str) -> list[Raw]:
    """Return the objects of a kind."""
    return [each for each in objects if each["kind"] == kind]
