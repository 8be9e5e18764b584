"""Sign the tiny model with a new key and put it into the local object store, as a platform team would."""

import shutil
from pathlib import Path

from gptoss_cli.local.errors import StepError
from gptoss_cli.local.folders import private_folder
from gptoss_cli.local.object_store import ObjectStore
from gptoss_cli.local.steps import Report
from gptoss_weights.errors import WeightsError
from gptoss_weights.sign import generate_key, sign_folder


def sign_and_upload(model: Path, subject: str, store: ObjectStore, folder: Path, report: Report) -> str:
    """Upload a signed copy of `model` as `<bucket>/<subject>`; return the public key's PEM.

    The key and the copy lie in `folder`. Raises StepError if the model can't be signed.
    """
    private_folder(folder)
    copy = folder / subject
    shutil.copytree(model, copy)
    try:
        pair = generate_key(folder / "signing.key")
        signed = sign_folder(copy, model=subject, key=pair.private_key)
    except WeightsError as error:
        raise StepError(f"{model} can't be signed: {error}") from error
    size = store.upload(copy, subject)
    shutil.rmtree(copy)
    report(f"{size / 1e6:.0f} MB, manifest {signed.manifest.digest[:19]}…, signer {signed.signer_fingerprint[:19]}…")
    return pair.public_key.read_text()
