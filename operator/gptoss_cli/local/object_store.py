"""An S3 server over a folder (versitygw), on loopback, with one bucket and one pair of credentials."""

import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from gptoss_cli.local.folders import private_folder, write_private
from gptoss_cli.local.ports import LOOPBACK, free_ports
from gptoss_cli.local.programs import Program, Programs

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAME = "object-store"
BUCKET = "models"
REGION = "us-east-1"
START_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """What a client needs to reach the store."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str = BUCKET
    region: str = REGION

    def environment(self) -> Mapping[str, str]:
        """Return the settings as the environment that boto3 reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> "S3Client":
        """Return a boto3 client with these settings, whatever the environment says."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(retries={"total_max_attempts": 3}, s3={"addressing_style": "path"}),
        )

    def uri(self, prefix: str) -> str:
        """Return the `s3://` address of a prefix in the bucket."""
        return f"s3://{self.bucket}/{prefix}"


class ObjectStore:
    """One S3 server whose objects are files below `folder`."""

    def __init__(self, folder: Path, *, binary: Path, programs: Programs) -> None:
        self.folder = folder
        self._binary = binary
        self._programs = programs
        self._access_file = folder / "access.json"

    @property
    def access(self) -> S3Access:
        """How to reach the started store."""
        return S3Access(**json.loads(self._access_file.read_text()))

    def start(self) -> None:
        """Start the server, make its bucket, and return when both are there. Raises ProgramError."""
        private_folder(self.folder)
        (port,) = free_ports(1)
        access = S3Access(
            endpoint=f"http://{LOOPBACK}:{port}",
            access_key=secrets.token_hex(10),
            secret_key=secrets.token_urlsafe(30),
        )
        write_private(self._access_file, json.dumps(asdict(access)))
        self._programs.start(
            Program(
                name=NAME,
                # File attributes can't be relied on in every file system: metadata lies beside the objects.
                command=(
                    *(str(self._binary), "--quiet", "posix"),
                    *("--sidecar", str(private_folder(self.folder / "metadata"))),
                    str(private_folder(self.folder / "objects")),
                ),
                environment={
                    "ROOT_ACCESS_KEY": access.access_key,
                    "ROOT_SECRET_KEY": access.secret_key,
                    "VGW_PORT": f"{LOOPBACK}:{port}",
                    "VGW_REGION": access.region,
                },
                grace_seconds=5.0,
            )
        )
        self._programs.wait(NAME, lambda: _listens(port), seconds=START_SECONDS)
        access.client().create_bucket(Bucket=access.bucket)

    def stop(self) -> None:
        """End the server; the objects stay in the folder."""
        self._programs.stop(NAME)

    def upload(self, folder: Path, prefix: str) -> int:
        """Upload a folder's files under `prefix` and return how many bytes that were."""
        client = self.access.client()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            client.upload_file(str(path), self.access.bucket, f"{prefix}/{path.relative_to(folder)}")
        return sum(path.stat().st_size for path in files)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
