"""The lock of the image for ROCm: all that Ray and this product ask for, less what vLLM's image brings as its own."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.packaging.test_tree import REPOSITORY

LOCKS = REPOSITORY / "locks"
DOCKERFILE = (REPOSITORY / "docker" / "serving-rocm.Dockerfile").read_text()
OTHERWISE_VERSIONED = "opentelemetry-exporter-prometheus"
"""It comes in OpenTelemetry's own version, and that of vLLM's image is older."""
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+) \\$", (LOCKS / lock).read_text(), re.MULTILINE))


def hashes(lock: str) -> dict[str, set[str]]:
    entries = re.split(r"^(?=[a-z0-9][a-z0-9.-]*==)", (LOCKS / lock).read_text(), flags=re.MULTILINE)[1:]
    return {entry.split("==")[0]: set(re.findall(r"sha256:[0-9a-f]{64}", entry)) for entry in entries}


def brought() -> dict[str, Requirement]:
    lines = (LOCKS / "serving-rocm-base.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in requirements}


LOCKED, BROUGHT = pins("serving-rocm.txt"), brought()


def asked_for(name: str, extras: set[str]) -> Iterator[Requirement]:
    """Yield what the installed ``name`` requires on the image's Python."""
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["serving"] if name == PROJECT["name"] else None
    for line in lines if lines is not None else distribution(name).requires or []:
        requirement = Requirement(line)
        environment = {"python_version": "3.12", "python_full_version": "3.12.13", "platform_machine": "x86_64"}
        if requirement.marker is None or any(
            requirement.marker.evaluate({**environment, "extra": extra}) for extra in {"", *extras}
        ):
            yield requirement


def test_all_that_is_asked_for_is_locked_or_brought_and_nothing_else_is() -> None:
    seen: set[str] = set()
    waiting: list[tuple[str, frozenset[str]]] = [(PROJECT["name"], frozenset())]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in done:
            continue
        done.add((name, extras))
        for requirement in asked_for(name, set(extras)):
            wanted = canonicalize_name(requirement.name)
            seen.add(wanted)
            if wanted in BROUGHT:
                pinned = [each.version for each in BROUGHT[wanted].specifier if each.operator == "=="]
                if name != OTHERWISE_VERSIONED:
                    assert all(requirement.specifier.contains(each) for each in pinned), (
                        f"{name} asks for {requirement}"
                    )
            else:
                assert wanted in LOCKED, f"{name} asks for {wanted}: neither locked nor brought"
                assert requirement.specifier.contains(LOCKED[wanted]), f"{name} asks for {requirement}"
                waiting.append((wanted, frozenset(requirement.extras)))
    assert seen - set(BROUGHT) == set(LOCKED)


def test_what_that_is_read_from_has_the_lock_s_versions() -> None:
    assert {name for name, locked in LOCKED.items() if version(name) != locked} == {OTHERWISE_VERSIONED}


def test_nothing_that_vllm_s_image_brings_is_replaced() -> None:
    assert set(LOCKED).isdisjoint(BROUGHT)
    tied_to_cards = re.compile(r"vllm|torch|triton|nvidia|cuda|nccl|flash|xgrammar|numba|tilelang|setuptools")
    assert [name for name in LOCKED if tied_to_cards.match(name)] == []
    _, _, left_out = (LOCKS / "serving-rocm.txt").read_text().partition("excluded from the output:\n")
    assert {line.removeprefix("# ") for line in left_out.splitlines()} == set(BROUGHT) - {"vllm"}


def test_versions_are_those_of_the_other_serving_image() -> None:
    others = pins("serving.txt")
    assert {name for name, locked in LOCKED.items() if others.get(name) != locked} == {OTHERWISE_VERSIONED}


def test_the_exporter_is_of_the_opentelemetry_that_the_image_brings() -> None:
    (semantic_conventions,) = BROUGHT["opentelemetry-semantic-conventions"].specifier
    assert LOCKED[OTHERWISE_VERSIONED] == semantic_conventions.version, "both are numbered together"


def test_image_lock_and_the_other_serving_image_are_of_one_vllm() -> None:
    (image,) = re.findall(r"^ARG VLLM_IMAGE=vllm/vllm-openai-rocm:v(\S+)$", DOCKERFILE, re.MULTILINE)
    assert str(BROUGHT["vllm"].specifier) == f"=={image}" == f"=={pins('serving.txt')['vllm']}"


def test_hashes_are_those_of_all_files_so_one_lock_fits_python_3_11_and_3_12() -> None:
    other = hashes("serving.txt")
    for name, of_package in hashes("serving-rocm.txt").items():
        if name != OTHERWISE_VERSIONED:
            assert of_package == other[name]
