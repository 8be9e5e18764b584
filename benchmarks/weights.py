"""Pull figures: what verification costs beside a plain download of the same files, all in one run.

A real S3 server (versitygw) on loopback, one signed model in several tensor files and a tokenizer of
gpt-oss's size. Every job runs in a process of its own, so that its peak memory is its own, and reads from
disk: the server's files are dropped from the page cache before each, and so is a download before it is
verified, as a model larger than memory would be. Jobs take turns for some rounds; ratios are of medians.

    python -m benchmarks.weights [--gib 0.5] [--files 8] [--rounds 3] [--folder DIR]

The size of the bars, 4 GiB and more, is `--gib 4`: it needs 9 GiB of disk and some minutes.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import in_process, misses, peak_mib, say
from gptoss_cli.local.assets import object_store_program
from gptoss_cli.local.object_store import ObjectStore, S3Access
from gptoss_cli.local.programs import Programs
from gptoss_weights.sign import generate_key, sign_folder

MODEL = "gpt-oss-bench"
MIB = 1024**2
PLAIN, COLD, CHECKED = "download", "verify it from disk", "download, then verify"
OURS, AGAIN, HASHING = "pull", "pull again", "hash one file"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where everything of one run lies."""

    root: Path
    source: Path
    objects: Path
    access: S3Access
    digest: str
    parallel: int

    @property
    def served_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.source.iterdir() if path.name != "model.sig")


# ---- jobs: each runs alone in a process and prints what it measured


def download(stage: Stage, target: Path) -> int:
    """Fetch every file with plain boto3, as many at a time as we do, one stream each."""
    from boto3.s3.transfer import TransferConfig

    target.mkdir()
    client = stage.access.client()
    config = TransferConfig(use_threads=False)

    def fetch(name: str) -> None:
        client.download_file(stage.access.bucket, f"{MODEL}/{name}", str(target / name), Config=config)

    with ThreadPoolExecutor(stage.parallel) as executor:
        list(executor.map(fetch, sorted(path.name for path in stage.source.iterdir())))
    return stage.served_bytes


def download_then_verify(stage: Stage, target: Path) -> int:
    """The same, then `model_signing verify key` of the folder, which the page cache still has."""
    download(stage, target)
    return verify(stage, target)


def verify(stage: Stage, target: Path) -> int:
    """`model_signing verify key` of a folder that is there."""
    import model_signing

    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=stage.root / "key.pub")
    config.verify(target, target / "model.sig")
    return stage.served_bytes


def pull(stage: Stage, target: Path) -> int:
    """Ours; where the copy is there already, that is verifying it again."""
    from gptoss_weights.limits import PullLimits
    from gptoss_weights.materialise import pull as materialise
    from gptoss_weights.sources import SourceSettings

    found = materialise(
        stage.access.uri(MODEL),
        manifest_digest=stage.digest,
        subject=MODEL,
        directory=target,
        settings=SourceSettings(
            s3_endpoint=stage.access.endpoint,
            s3_region=stage.access.region,
            s3_access_key_id=stage.access.access_key,
            s3_secret_access_key=stage.access.secret_key,
        ),
        limits=PullLimits(parallel_files=stage.parallel),
    )
    return found.fetched_bytes


def hash_one_file(stage: Stage, _: Path) -> int:
    """SHA-256 of one tensor file on one core: what a core can do on this machine, now."""
    (path,) = sorted(stage.source.glob("model-00001-*"))
    with path.open("rb", buffering=0) as stream:
        hashlib.file_digest(stream, "sha256")
    return path.stat().st_size


JOBS: dict[str, Callable[[Stage, Path], int]] = {
    PLAIN: download,
    COLD: verify,
    CHECKED: download_then_verify,
    OURS: pull,
    AGAIN: pull,
    HASHING: hash_one_file,
}


def work(job: str, stage: Stage, target: Path) -> None:
    """Run one job and print its figures. Imports are warmed first: they are no part of anybody's rate."""
    import boto3  # noqa: F401

    if job in (COLD, CHECKED):
        import model_signing  # noqa: F401
    else:
        import gptoss_weights.materialise  # noqa: F401
    begun, spent = time.monotonic(), time.process_time()
    done = JOBS[job](stage, target)
    seconds, cpu = time.monotonic() - begun, time.process_time() - spent
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": done, "peak": peak_mib()}))


# ---- the run


def run(*, gib: float, files: int, rounds: int, parallel: int, folder: Path | None) -> int:
    """Run everything and print the table; 1 if a bar is missed."""
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="gptoss-bench-", dir=folder) as temporary:
        root = Path(temporary)
        say(f"writing and signing {gib} GiB in {files} tensor files")
        digest = signed_model(root, gib=gib, files=files)
        store = ObjectStore(
            root / "store", binary=object_store_program(), programs=Programs(root / "run", attached=True)
        )
        store.start()
        try:
            store.upload(root / MODEL, MODEL)
            stage = Stage(
                root=root,
                source=root / MODEL,
                objects=store.folder / "objects",
                access=store.access,
                digest=digest,
                parallel=parallel,
            )
            figures = _rounds(stage, rounds)
        finally:
            store.stop()
        return _report(figures, stage, busy=busy)


def _rounds(stage: Stage, rounds: int) -> dict[str, list[dict[str, float]]]:
    figures: dict[str, list[dict[str, float]]] = {job: [] for job in JOBS}
    for number in range(rounds):
        for job in JOBS:
            say(f"round {number + 1} of {rounds}: {job}")
            target = stage.root / ("private" if job == AGAIN else f"target-{OURS if job == OURS else 'plain'}")
            if job == AGAIN:
                (stage.root / f"target-{OURS}").rename(target)
            os.sync()  # what one job wrote is no part of the next one's time
            if job == COLD:
                _forget(target)
            elif job not in (AGAIN, HASHING):
                _forget(stage.objects)
            figures[job].append(_in_process(stage, job, target))
            if job not in (PLAIN, OURS):
                remove(target)
    return figures


def _in_process(stage: Stage, job: str, target: Path) -> dict[str, float]:
    described = {
        "root": str(stage.root),
        "source": str(stage.source),
        "objects": str(stage.objects),
        "access": vars(stage.access),
        "digest": stage.digest,
        "parallel": stage.parallel,
        "job": job,
        "target": str(target),
    }
    return in_process("benchmarks.weights", described)


def _report(figures: dict[str, list[dict[str, float]]], stage: Stage, *, busy: float) -> int:
    served = stage.served_bytes
    median = {job: statistics.median(each["seconds"] for each in found) for job, found in figures.items()}
    cores = len(os.sched_getaffinity(0))
    core_rate = figures[HASHING][0]["bytes"] / median[HASHING]
    print(f"\n{served / MIB:.0f} MiB served, {stage.parallel} files at a time, {cores} cores, load before {busy:.1f}")
    if busy > cores:
        print("The machine was busy with other things: times say little, CPU seconds and memory hold.")
    print(f"{'':24}{'seconds':>10}{'fastest':>10}{'slowest':>10}{'CPU':>10}{'MiB/s':>10}{'peak MiB':>10}")
    for job, found in figures.items():
        seconds = [each["seconds"] for each in found]
        moved = found[0]["bytes"] if job == HASHING else served
        cpu, peak = statistics.median(each["cpu"] for each in found), max(each["peak"] for each in found)
        cells = (median[job], min(seconds), max(seconds), cpu, moved / MIB / median[job], peak)
        print(f"{job:24}" + "".join(f"{cell:10.2f}" for cell in cells))
    print(f"\n{'ours':50}{'value':>10}{'bar':>10}")
    bars = {
        "rate of a plain download": (median[PLAIN] / median[OURS], ">=", 0.9),
        "time of download, then verify from disk": (median[OURS] / (median[PLAIN] + median[COLD]), "<=", 0.6),
        "bytes requested, of bytes served": (max(each["bytes"] for each in figures[OURS]) / served, "<=", 1.02),
        "peak memory, MiB": (max(each["peak"] for job in (OURS, AGAIN) for each in figures[job]), "<=", 256.0),
        "verifying again, of all cores' SHA-256": (served / median[AGAIN] / (core_rate * cores), ">=", 0.8),
    }
    missed = misses(bars)
    print(f"\nof download, then verify what the page cache still has whole: {median[OURS] / median[CHECKED]:.2f}")
    return 1 if missed else 0


def signed_model(root: Path, *, gib: float, files: int) -> str:
    folder = root / MODEL
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["GptOssForCausalLM"]}')
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(), indent=1, ensure_ascii=False))
    block = os.urandom(MIB)
    blocks = max(1, int(gib * 1024 / files))
    index: dict[str, str] = {}
    for number in range(1, files + 1):
        name = f"model-{number:05}-of-{files:05}.safetensors"
        index[f"layer.{number}"] = name
        size = blocks * MIB
        header = {f"layer.{number}": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
        raw = json.dumps(header).encode()
        with (folder / name).open("wb") as stream:
            stream.write(struct.pack("<Q", len(raw)) + raw)
            for _ in range(blocks):
                stream.write(block)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    pair = generate_key(root / "key")
    return sign_folder(folder, model=MODEL, key=pair.private_key).manifest.digest


def _tokenizer() -> dict[str, Any]:
    """Return a tokenizer as large as gpt-oss's: 200,000 words, 446,000 merges, some 28 MB of JSON."""
    words = {f"Ġword{number}": number for number in range(200_000)}
    return {"model": {"vocab": words, "merges": [[f"Ġw{n}", f"ord{n}"] for n in range(446_000)]}}


def _forget(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that the server reads them from disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        Path(parent).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=0.5, help="size of the tensors (default 0.5)")
    parser.add_argument("--files", type=int, default=8, help="tensor files (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every job (default 3)")
    parser.add_argument("--parallel", type=int, default=8, help="files at a time, theirs and ours (default 8)")
    parser.add_argument("--folder", type=Path, help="where to put 2.2 times the size (default: the temporary folder)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        told = json.load(sys.stdin)
        paths = {name: Path(told[name]) for name in ("root", "source", "objects")}
        stage = Stage(**paths, access=S3Access(**told["access"]), digest=told["digest"], parallel=told["parallel"])
        work(told["job"], stage, Path(told["target"]))
        return 0
    return run(
        gib=options.gib,
        files=options.files,
        rounds=options.rounds,
        parallel=options.parallel,
        folder=options.folder,
    )


if __name__ == "__main__":
    raise SystemExit(main())
