"""Pulls in a process of its own, as standard input tells in JSON, and prints the most memory in MiB that it took."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.jobs import peak_mib

from gptoss_weights.limits import PullLimits
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings, ahead
from tests.unit.weights.builders import MODEL, Model, model, safetensors

MIB = 2**20
MOST_MIB = 256
SECONDS = 300


def larger_than_lanes(folder: Path, *, files: int) -> Model:
    """So many files, one of which is so large that it goes on by ranges once the others are there."""
    large = {f"model-00001-of-{files:05}.safetensors": safetensors({"layer.0": 160 * MIB})}
    return model(folder, shards=files, shard_bytes=5 * MIB, **large)


def peak_of_pull(
    uri: str, *, digest: str, settings: SourceSettings, limits: dict[str, int], revision: str | None = None
) -> float:
    """Return the most memory in MiB that a process took which pulls."""
    given = {name: value for name in settings.__slots__ if isinstance(value := getattr(settings, name), str)}
    hosts = list(settings.hf_download_hosts)
    told = {"uri": uri, "revision": revision, "digest": digest, "settings": given, "hosts": hosts, "limits": limits}
    measured = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(told), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    return float(measured.stdout)


def main() -> None:
    told = json.load(sys.stdin)
    # Ranges go ahead whatever the clock says of them: they are what takes memory.
    ahead._WORTH = 0
    with TemporaryDirectory() as directory:
        found = pull(
            told["uri"],
            revision=told["revision"],
            manifest_digest=told["digest"],
            subject=MODEL,
            directory=Path(directory),
            settings=SourceSettings(**told["settings"], hf_download_hosts=tuple(told["hosts"])),
            limits=PullLimits(spare_bytes=0, **told["limits"]),
        )
    assert found.fetched_bytes == found.bytes > 160 * MIB
    print(peak_mib())


if __name__ == "__main__":
    main()
