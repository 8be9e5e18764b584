"""What the `model_signing` library (1.1.1) does where we do otherwise: a table, each line with both halves.

`GAPS` has a line for each signed bundle that is wrong: what it is, how far the library goes along with it, and the
error that we raise. Below it stand those that a bundle alone can't show, and those for which the library is right too.

Should a later version of the library close a gap, its half of the test fails: then the line in docs/trust.md goes, and
our half stays.
"""

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from gptoss_weights.errors import (
    MalformedManifestError,
    MalformedSignatureError,
    ManifestChangedError,
    SourceNotAllowedError,
    SubjectMismatchError,
    TrustError,
    UntrustedSignerError,
    WeightsError,
)
from gptoss_weights.hashing import hash_file
from gptoss_weights.manifest import manifest_digest, root_digest
from tests.unit.weights.builders import bundle, private_key
from tests.unit.weights.builders import statement as signed_statement
from tests.unit.weights.place import Place, place

__all__ = ["place"]

SEEN = {
    "config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}


def test_both_accept_what_is_right(place: Place) -> None:
    place.put(bundle(signed_statement(files=place.files())))
    place.library()
    place.library_listed()
    assert sorted(place.library_reads()) == sorted(place.model.files)
    place.ours()
    place.decide()
    assert place.pulled() == SEEN


def legacy_predicate(place: Place) -> dict[str, Any]:
    """The predicate of signers before version 1.0, which binds neither a root digest nor a subject."""
    return bundle(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in place.files().items()],
            "predicateType": "https://model_signing/Digests/v0.1",
            "predicate": {"unused": "Unused, just passed due to API requirements"},
        }
    )


def old_encoding(place: Place) -> dict[str, Any]:
    """Signed over the text of Python's bytes, as version 0.2 did: two readings of one signature."""
    payload = json.dumps(signed_statement(files=place.files())).encode()
    document = bundle(payload)
    text = f"DSSEV1 28 application/vnd.in-toto+json {len(payload)} {payload}".encode()
    return signed_by(document, text)


def several_signatures(place: Place) -> dict[str, Any]:
    """Only the first is looked at: another reader may choose another."""
    document = bundle(signed_statement(files=place.files()))
    document["dsseEnvelope"]["signatures"].append({"sig": base64.b64encode(b"anything").decode(), "keyid": "other"})
    return document


def no_key_hint(place: Place) -> dict[str, Any]:
    """A signature that does not say by whom it claims to be."""
    document = bundle(signed_statement(files=place.files()))
    document["verificationMaterial"]["publicKey"] = {}
    return document


def a_key_beside_the_hint(place: Place) -> dict[str, Any]:
    """Another key in the bundle, which the library takes out before it looks."""
    document = bundle(signed_statement(files=place.files()))
    document["verificationMaterial"]["publicKey"]["rawBytes"] = base64.b64encode(b"another key").decode()
    return document


def a_member_twice(place: Place) -> dict[str, Any]:
    """One key of the statement twice: of two readers, one takes the first."""
    return bundle(json.dumps(signed_statement(files=place.files())).replace("{", '{"_type": "other", ', 1).encode())


def a_name_twice(place: Place) -> dict[str, Any]:
    """One file with two digests: of two readers, one takes the first."""
    return listed([("config.json", "d" * 64), *place.files().items()])


def no_files(place: Place) -> dict[str, Any]:
    """A model of nothing, which anything is signed as that ignores what it does not list."""
    for name in place.model.files:
        (place.folder / name).unlink()
    (place.folder / "original").rmdir()
    return listed([])


def another_subject(place: Place) -> dict[str, Any]:
    """Validly signed, as another model."""
    return bundle(signed_statement(subject="gpt-oss-20b-nightly", files=place.files()))


def backslash(place: Place) -> dict[str, Any]:
    """A name that is two segments elsewhere."""
    return with_name(place, "..\\..\\config.json")


def control_character(place: Place) -> dict[str, Any]:
    """A name that does something to whose terminal shows it."""
    return with_name(place, "a\x1b[2J.json")


def newline(place: Place) -> dict[str, Any]:
    """A name that is two lines of a log."""
    return with_name(place, "a\nb.json")


def decomposed(place: Place) -> dict[str, Any]:
    """A name that is another's on a file system that composes characters."""
    return with_name(place, "mode\u0300le.json")


def names_in_two_cases(place: Place) -> dict[str, Any]:
    """Two files that are one on a file system that does not tell cases apart."""
    return with_name(place, "Config.json", b'{"architectures": ["Another"]}')


def dot_segment(place: Place) -> dict[str, Any]:
    """One file by another spelling of its name."""
    files = place.files()
    digest = files.pop("config.json")
    return listed([("./config.json", digest), *files.items()])


def parent(place: Place) -> dict[str, Any]:
    """A file beside the folder, which is opened and hashed."""
    place.folder.with_name("beside.json").write_bytes(b"{}")
    return with_name(place, "../beside.json")


def absolute(place: Place) -> dict[str, Any]:
    """A file anywhere."""
    elsewhere = place.folder.with_name("elsewhere.json")
    elsewhere.write_bytes(b"{}")
    return listed([*place.files().items(), (str(elsewhere), hash_file(elsewhere))])


def nul(place: Place) -> dict[str, Any]:
    """A name that ends early for whoever counts to its NUL."""
    return listed([*place.files().items(), ("config.json\0.txt", "d" * 64)])


def empty_name(place: Place) -> dict[str, Any]:
    """The folder itself."""
    return listed([*place.files().items(), ("", "d" * 64)])


@dataclass(frozen=True)
class Gap:
    """What is wrong; what of the library's goes along with it; and why we do not."""

    wrong: Callable[[Place], dict[str, Any]]
    library: Callable[[Place], object]
    ours: type[TrustError]

    def __str__(self) -> str:
        return f"{self.wrong.__name__}-{self.library.__name__}"


GAPS = (
    Gap(legacy_predicate, Place.library, MalformedManifestError),
    Gap(old_encoding, Place.library, UntrustedSignerError),
    Gap(several_signatures, Place.library, MalformedSignatureError),
    Gap(no_key_hint, Place.library, MalformedSignatureError),
    Gap(a_key_beside_the_hint, Place.library, MalformedSignatureError),
    Gap(a_member_twice, Place.library, MalformedManifestError),
    Gap(a_name_twice, Place.library, MalformedManifestError),
    Gap(no_files, Place.library, MalformedManifestError),
    Gap(another_subject, Place.library, SubjectMismatchError),
    Gap(backslash, Place.library, MalformedManifestError),
    Gap(control_character, Place.library, MalformedManifestError),
    Gap(newline, Place.library, MalformedManifestError),
    Gap(decomposed, Place.library, MalformedManifestError),
    Gap(names_in_two_cases, Place.library, MalformedManifestError),
    Gap(dot_segment, Place.library, MalformedManifestError),
    Gap(parent, Place.library_listed, MalformedManifestError),
    # No folder is verified by these three, as a test below shows. Their names are handed out all the same.
    Gap(absolute, Place.library_reads, MalformedManifestError),
    Gap(nul, Place.library_reads, MalformedManifestError),
    Gap(empty_name, Place.library_reads, MalformedManifestError),
)


@pytest.mark.parametrize("gap", GAPS, ids=str)
def test_the_library_accepts_and_we_refuse(place: Place, gap: Gap) -> None:
    place.put(gap.wrong(place))
    gap.library(place)
    with pytest.raises(gap.ours):
        place.ours()
    with pytest.raises(gap.ours):
        place.decide()


@pytest.mark.parametrize("wrong", [absolute, nul, empty_name], ids=lambda wrong: wrong.__name__)
def test_of_a_name_that_no_folder_holds_the_library_verifies_none_either(
    place: Place, wrong: Callable[[Place], dict[str, Any]]
) -> None:
    place.put(wrong(place))
    for verified in (place.library, place.library_listed):
        with pytest.raises(ValueError, match=r"Cannot use|mismatch|not in the subpath"):
            verified()


def test_the_library_lets_the_manifest_say_which_files_are_not_looked_at(place: Place) -> None:
    document = signed_statement(files=place.files())
    document["predicate"]["serialization"]["ignore_paths"] = ["hooks"]
    place.put(bundle(document))
    place.add("hooks/load.py", b"import os")
    place.library()
    assert place.pulled() == SEEN


def test_the_library_overlooks_unsigned_files_that_git_could_have_put_there(place: Place) -> None:
    place.put(bundle(signed_statement(files=place.files())))
    for name in (".git/hooks/post-checkout", ".gitattributes", ".github/load.py", ".gitignore"):
        place.add(name, b"import os")
    place.library()
    assert place.pulled() == SEEN
    place.add("generation_config.json")
    with pytest.raises(ValueError, match="Extra files found"):
        place.library()
    assert place.pulled() == SEEN, "what is not listed does not exist, wherever it lies"


def test_the_library_follows_a_link_on_the_way_to_a_file(place: Place) -> None:
    elsewhere = place.folder.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "x.json").write_bytes(b"{}")
    (place.folder / "sub").symlink_to(elsewhere)
    digest = hash_file(elsewhere / "x.json")
    place.put(listed([*place.files().items(), ("sub/x.json", digest)]))
    place.library_listed()
    with pytest.raises(SourceNotAllowedError, match="leaves the permitted root"):
        place.pulled()


def test_links_are_refused_by_both_whatever_the_manifest_says_of_them(place: Place) -> None:
    (place.folder / "generation_config.json").symlink_to(place.folder / "config.json")
    document = listing([*place.files().items(), ("generation_config.json", place.files()["config.json"])])
    document["predicate"]["serialization"]["allow_symlinks"] = True
    place.put(bundle(document))
    for verified in (place.library, place.library_listed):
        with pytest.raises(ValueError, match="symlink"):
            verified()
    with pytest.raises(MalformedManifestError, match="allow_symlinks"):
        place.ours()


def test_the_digest_that_the_library_names_a_model_by_says_nothing_of_names(place: Place) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    files = place.files()
    place.put(bundle(listing(files.items())))
    pin = manifest_digest(base64.b64decode(json.loads(place.signature.read_text())["dsseEnvelope"]["payload"]))
    place.decide(pin=pin)
    # The same bytes under each other's names: another model, signed by the same key, with the same root digest.
    swapped = dict(zip(shards, reversed(shards), strict=True))
    contents = {name: (place.folder / name).read_bytes() for name in shards}
    for name in shards:
        (place.folder / swapped[name]).write_bytes(contents[name])
    document = listing([(swapped.get(name, name), digest) for name, digest in files.items()])
    place.put(bundle(document))
    assert document["subject"] == listing(files.items())["subject"]
    place.library()
    with pytest.raises(ManifestChangedError):
        place.decide(pin=pin)


def test_the_library_remembers_what_an_earlier_manifest_let_it_overlook(place: Place) -> None:
    strict = listing(place.files().items())
    lenient = listing(place.files().items())
    lenient["predicate"]["serialization"]["ignore_paths"] = ["load.py"]
    place.add("load.py", b"import os")
    config = place.verifier()
    place.put(bundle(lenient))
    place.library_with(config)
    assert place.pulled() == SEEN
    place.put(bundle(strict))
    with pytest.raises(ValueError, match="Extra files found"):
        place.library()
    place.library_with(config)
    assert place.pulled() == SEEN


def another_key(place: Place) -> dict[str, Any]:
    return bundle(signed_statement(files=place.files()), key=private_key("stranger"))


def another_media_type(place: Place) -> dict[str, Any]:
    return {**bundle(signed_statement(files=place.files())), "mediaType": "application/json"}


def another_statement(place: Place) -> dict[str, Any]:
    return bundle({**signed_statement(files=place.files()), "_type": "other"})


def other_bytes(place: Place) -> dict[str, Any]:
    document = bundle(signed_statement(files=place.files()))
    (place.folder / "config.json").write_bytes(b"{}")
    return document


def no_bundle(place: Place) -> dict[str, Any]:
    del place
    return {}


def other_material(place: Place) -> dict[str, Any]:
    document = bundle(signed_statement(files=place.files()))
    return {**document, "verificationMaterial": []}


def nobodys_signature(place: Place) -> dict[str, Any]:
    return signed_by(bundle(signed_statement(files=place.files())), b"something else")


def failure(act: Callable[[], object]) -> Exception:
    with pytest.raises((ValueError, KeyError, TypeError, InvalidSignature, WeightsError)) as caught:
        act()
    return caught.value


def test_the_library_tells_a_stranger_from_broken_bytes_by_its_words_alone(place: Place) -> None:
    theirs: set[type[Exception]] = set()
    ours: list[str] = []
    for wrong in (another_key, another_statement, other_bytes):
        place.put(wrong(place))
        theirs.add(type(failure(place.library)))
        refusal = failure(place.ours)
        assert isinstance(refusal, WeightsError)
        ours.append(refusal.reason)
    assert theirs == {ValueError}
    assert ours == ["UntrustedSigner", "MalformedManifest", "DigestMismatch"]


@pytest.mark.parametrize(
    ("wrong", "theirs", "ours"),
    [
        (no_bundle, KeyError, "MalformedSignature"),
        (other_material, TypeError, "MalformedSignature"),
        (another_media_type, ValidationError, "MalformedSignature"),
        (nobodys_signature, InvalidSignature, "UntrustedSigner"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_library_says_other_things_in_the_words_of_what_it_is_made_of(
    place: Place, wrong: Callable[[Place], dict[str, Any]], theirs: type[Exception], ours: str
) -> None:
    place.put(wrong(place))
    assert type(failure(place.library)) is theirs
    refusal = failure(place.ours)
    assert isinstance(refusal, WeightsError)
    assert refusal.reason == ours


def signed_by(document: dict[str, Any], text: bytes) -> dict[str, Any]:
    signature = private_key().sign(text, ec.ECDSA(hashes.SHA256()))
    document["dsseEnvelope"]["signatures"] = [{"sig": base64.b64encode(signature).decode(), "keyid": ""}]
    return document


def with_name(place: Place, name: str, content: bytes = b"{}") -> dict[str, Any]:
    """A signed manifest of the folder with one file more, which is there."""
    place.add(name, content)
    return listed([*place.files().items(), (name, hash_file(place.folder / name))])


def listed(resources: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return bundle(listing(resources))


def listing(resources: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A statement that lists names and digests as they come, twice too."""
    pairs = list(resources)
    document = signed_statement(files=dict(pairs))
    document["subject"][0]["digest"]["sha256"] = root_digest([digest for _, digest in pairs])
    document["predicate"]["resources"] = [{"name": n, "algorithm": "sha256", "digest": d} for n, d in pairs]
    return document
