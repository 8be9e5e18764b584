"""Weights in a repository of a Hugging Face hub, or of a mirror that answers as one.

Every address names the commit, so the hub itself can't change what is read. It answers for a small file, or
redirects: within itself to a copy of the same commit, or for large files to a download host. The first kind is
followed as long as it stays in the repository, the second only to hosts that an administrator lists; the token
goes to the hub alone. The address that a large file is redirected to is used for all its ranges while it is good,
for hubs count requests.
"""

import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, NoReturn
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, SSLError

from gptoss_api.names import CREDENTIALS_SECRET
from gptoss_weights.errors import (
    AccessDeniedError,
    ForbiddenContentError,
    MissingFileError,
    SourceChangedError,
    SourceError,
    SourceNotAllowedError,
    SourceUnavailableError,
    ThrottledError,
)
from gptoss_weights.location import Location
from gptoss_weights.sources.connections import connection_pools
from gptoss_weights.sources.download_hosts import check_download_host
from gptoss_weights.sources.endpoint import can_be_overheard, check_endpoint
from gptoss_weights.sources.protocol import ObjectVersion
from gptoss_weights.sources.retry import asked_wait, retrying
from gptoss_weights.sources.settings import (
    HUB_DOWNLOAD_HOSTS_VARIABLE,
    HUB_TOKEN_VARIABLE,
    PARALLEL_FILES_VARIABLE,
    SourceSettings,
)

_CHUNK_BYTES: Final = 256 * 1024
_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_TOKEN: Final = re.compile(r"[!-~]{1,1024}")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class HubSource:
    """One commit of a repository."""

    def __init__(self, location: Location, *, settings: SourceSettings) -> None:
        if location.revision is None:
            raise SourceNotAllowedError(
                "an hf:// source needs the full id of a commit, 40 hexadecimal digits; "
                "set spec.model.revision (or --revision)"
            )
        check_endpoint(settings.hf_endpoint)
        self._endpoint = urlsplit(settings.hf_endpoint.rstrip("/"))
        self._repository = (location.bucket, *location.segments)
        self._revision = location.revision
        self._download_hosts = _checked_hosts(settings.hf_download_hosts)
        self._token = _checked_token(settings.hf_token, self._endpoint)
        self._max_attempts = settings.max_attempts
        self._pools = connection_pools()
        self._timeout = urllib3.Timeout(connect=settings.connect_timeout_seconds, read=settings.read_timeout_seconds)
        self._lock = threading.Lock()
        self._open: set[urllib3.BaseHTTPResponse] = set()
        self._places: dict[tuple[str, ObjectVersion], SplitResult] = {}
        self._closed = False

    def stat(self, name: str) -> ObjectVersion:
        """Return size and ETag of a file. A large one's is the SHA-256 that the hub says it has."""
        return retrying(self._max_attempts)(self._stat, name)

    def read_small(self, name: str, *, limit: int) -> bytes:
        """Return a whole file of at most ``limit`` bytes."""
        return retrying(self._max_attempts)(self._read_small, name, limit)

    def stream(self, name: str, *, version: ObjectVersion, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` on, of exactly this version."""
        return self.stretch(name, version=version, offset=offset, end=version.size)

    def stretch(self, name: str, *, version: ObjectVersion, offset: int, end: int) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` up to ``end``, of exactly this version."""
        last = "" if end == version.size else str(end - 1)
        with self._asked_again(name, {"Range": f"bytes={offset}-{last}"}, version) as answer:
            _check_range(answer, name, version, offset, end)
            while chunk := answer.read(_CHUNK_BYTES):
                yield chunk

    def close(self) -> None:
        """Close the connections, and end the streams that other threads still wait for."""
        with self._lock:
            self._closed = True
            for answer in self._open:
                with suppress(ValueError, RuntimeError, OSError):
                    answer.shutdown()
        self._pools.clear()

    def _stat(self, name: str) -> ObjectVersion:
        with self._asked("HEAD", name, {}) as answer:
            size = answer.headers.get("X-Linked-Size") or answer.headers.get("Content-Length")
            etag = _etag(answer.headers)
            redirected = answer.status in _REDIRECTS and "X-Linked-Size" not in answer.headers
            if size is None or not size.isdecimal() or etag is None or redirected:
                _refuse_hub(f"tells no size and no ETag of {name}", name)
            return ObjectVersion(size=int(size), etag=etag)

    def _read_small(self, name: str, limit: int) -> bytes:
        with self._asked("GET", name, {}) as answer:
            found = answer.read(limit + 1)
            while len(found) <= limit and (more := answer.read(limit + 1 - len(found))):
                found += more
        if len(found) > limit:
            raise ForbiddenContentError(f"{name} is longer than {limit} bytes", file=name)
        return found

    @contextmanager
    def _asked_again(
        self, name: str, headers: Mapping[str, str], version: ObjectVersion
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Ask for bytes of a version where it was found before, or else, and once that failed, ask the hub where."""
        place = self._places.get((name, version))
        try:
            if place is None:
                with self._asked("GET", name, headers, version=version) as answer:
                    yield answer
                return
            with _source_errors(name), self._answered("GET", place, headers, name, at_hub=False) as answer:
                if answer.status != 206:
                    raise SourceUnavailableError(f"the address of {name} is good no more", file=name)
                yield answer
        except SourceError:
            self._places.pop((name, version), None)
            raise

    @contextmanager
    def _asked(
        self, method: str, name: str, headers: Mapping[str, str], *, version: ObjectVersion | None = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Ask for a file and follow redirects; HEAD stops at one that leads away from the hub."""
        path = "/".join(("", *self._repository, "resolve", self._revision, quote(name)))
        url = urlsplit(self._endpoint.geturl() + path)
        commit: str | None = None
        with _source_errors(name):
            for _ in range(_MOST_REDIRECTS + 1):
                at_hub = self._is_of_repository(url)
                with self._answered(method, url, headers, name, at_hub=at_hub) as answer:
                    commit = commit or answer.headers.get("X-Repo-Commit")
                    if at_hub and version is not None:
                        _check_version(answer, name, version)
                    if answer.status not in _REDIRECTS:
                        _check_status(answer, name, at_hub=at_hub)
                        self._check_commit(commit, name)
                        if version is not None and not at_hub:
                            self._places[(name, version)] = url
                        yield answer
                        return
                    following = _following(url, answer.headers.get("Location", ""), name)
                    self._check_redirect(following, name)
                    if method == "HEAD" and _origin(following) != _origin(self._endpoint):
                        self._check_commit(commit, name)
                        yield answer
                        return
                url = following
        raise SourceError(f"the hub redirects more than {_MOST_REDIRECTS} times for {name}", file=name)

    @contextmanager
    def _answered(
        self, method: str, url: SplitResult, headers: Mapping[str, str], name: str, *, at_hub: bool
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        token = {"Authorization": f"Bearer {self._token}"} if at_hub and self._token is not None else {}
        answer = self._pools.urlopen(
            method,
            url.geturl(),
            # The bytes that were signed are those of the file, not of a compressed one.
            headers={"Accept-Encoding": "identity", "User-Agent": "gptoss-operator", **headers, **token},
            redirect=False,
            retries=False,  # ours are in retry.py, one policy for requests and streams
            preload_content=False,
            decode_content=False,
            timeout=self._timeout,
        )
        try:
            with self._lock:
                if self._closed:
                    raise SourceUnavailableError(f"the source of {name} was closed", file=name)
                self._open.add(answer)
            yield answer
            if method == "HEAD" or answer.status in _REDIRECTS:
                answer.read(_CHUNK_BYTES)  # to its end, so that the connection can be used again
        finally:
            with self._lock:
                self._open.discard(answer)
            answer.close()

    def _is_of_repository(self, url: SplitResult) -> bool:
        """Tell whether an address is the hub's own for this commit: only there the token goes."""
        parts = url.path.split("/")
        if _origin(url) != _origin(self._endpoint) or {".", ".."} & set(parts):
            return False
        width = len(self._repository)
        starts = (at for at in range(len(parts)) if tuple(parts[at : at + width]) == self._repository)
        return any(self._revision in parts[at + width :] for at in starts)

    def _check_redirect(self, url: SplitResult, name: str) -> None:
        if self._is_of_repository(url) or self._is_download_host(url):
            return
        if _origin(url) == _origin(self._endpoint):
            raise SourceNotAllowedError(
                f"the hub redirects {name} to another repository; if this one was moved, correct spec.model.uri",
                file=name,
            )
        raise SourceNotAllowedError(
            f"the hub redirects {name} to a host that no administrator allows: {_place(url)}; add it to "
            f"weightSources.huggingFace.downloadHosts ({HUB_DOWNLOAD_HOSTS_VARIABLE}; https only), or use a mirror",
            file=name,
        )

    def _is_download_host(self, url: SplitResult) -> bool:
        if url.username or url.password or url.scheme not in ("https", self._endpoint.scheme):
            return False
        _, host, port = _origin(url)
        for allowed in self._download_hosts:
            pattern, _, wanted = allowed.partition(":")
            fits = host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
            if fits and port == (int(wanted) if wanted else _DEFAULT_PORTS["https"]):
                return True
        return False

    def _check_commit(self, commit: str | None, name: str) -> None:
        if commit is None:
            _refuse_hub("does not say which commit it answers for", name)
        if commit != self._revision:
            _refuse_hub(f"answers with another commit of {name} than asked for", name)


def _checked_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(map(check_download_host, hosts))
    except ValueError as error:
        raise SourceNotAllowedError(
            f"{HUB_DOWNLOAD_HOSTS_VARIABLE} (weightSources.huggingFace.downloadHosts): {error}; commas separate several"
        ) from error


def _checked_token(token: str | None, endpoint: SplitResult) -> str | None:
    if token is None or not (token := token.strip()):
        return None
    if not _TOKEN.fullmatch(token):
        raise AccessDeniedError(f"{HUB_TOKEN_VARIABLE} holds characters that no token has; write the token alone")
    if can_be_overheard(endpoint.geturl()):
        raise AccessDeniedError(
            f"the hub's endpoint is http://, over which no token is sent; use https://, or remove {HUB_TOKEN_VARIABLE}"
        )
    return token


def _check_status(answer: urllib3.BaseHTTPResponse, name: str, *, at_hub: bool) -> None:
    status, code = answer.status, answer.headers.get("X-Error-Code", "")
    if status in (200, 206):
        return
    if status == 429 or (status == 503 and "Retry-After" in answer.headers):
        raise ThrottledError(
            f"the hub throttles requests (status {status}) for {name}; "
            f"give it a token of an account with higher limits, or lower {PARALLEL_FILES_VARIABLE}",
            file=name,
            seconds=asked_wait(answer.headers),
        )
    if status == 416:
        raise SourceChangedError(f"{name} was replaced while it was being read", file=name)
    if status == 408 or status >= 500 or (status in (401, 403) and not at_hub):
        # An address of a download host ends after a while: the next try gets another one from the hub.
        raise SourceUnavailableError(f"the hub answers with status {status} for {name}", file=name)
    if status in (401, 403):
        raise AccessDeniedError(
            f"the hub refuses to hand out {name} (status {status}): there is no such repository, or "
            f"{HUB_TOKEN_VARIABLE} of the Secret {CREDENTIALS_SECRET} may not read it, or its terms are not accepted "
            "yet",
            file=name,
        )
    if code == "RevisionNotFound":
        raise SourceError("the hub knows no such commit of the repository; correct spec.model.revision", file=name)
    if code == "RepoNotFound":
        raise SourceError("the hub knows no such repository; correct spec.model.uri", file=name)
    if status == 404:
        raise MissingFileError(f"{name} is not in the repository at this commit; upload it", file=name)
    raise SourceError(f"the hub answers with status {status} for {name}; check its endpoint", file=name)


def _check_version(answer: urllib3.BaseHTTPResponse, name: str, version: ObjectVersion) -> None:
    # Of a redirect or an error, a plain ETag is not the file's.
    etag = _etag(answer.headers) if answer.status in (200, 206) else _linked_etag(answer.headers)
    size = answer.headers.get("X-Linked-Size")
    if (etag is not None and etag != version.etag) or (size is not None and size != str(version.size)):
        raise SourceChangedError(f"{name} was replaced while it was being read", file=name)


def _check_range(answer: urllib3.BaseHTTPResponse, name: str, version: ObjectVersion, offset: int, end: int) -> None:
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        _refuse_hub(f"answers with a compressed {name}", name)
    served = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status == 206 and served is not None and int(served[2]) != version.size:
        raise SourceChangedError(f"{name} was replaced while it was being read", file=name)
    length = answer.headers.get("Content-Length")
    starts_right = int(served[1]) == offset if served is not None else not offset
    if length != str(end - offset) or not starts_right:
        raise SourceError(f"the hub answered another range of {name} than asked for", file=name)


@contextmanager
def _source_errors(name: str) -> Iterator[None]:
    try:
        yield
    except SSLError as error:
        raise SourceError(
            f"the certificate of the hub, or of the host it redirects to, is not trusted ({_cause(error)}); "
            "name the file with its authority in SSL_CERT_FILE",
            file=name,
        ) from error
    except (HTTPError, OSError) as error:
        # Messages quote addresses, and those of download hosts are secrets for a while.
        raise SourceUnavailableError(f"{name} can't be read from the hub ({type(error).__name__})", file=name) from None


def _cause(error: SSLError) -> str:
    cause = error.args[0] if error.args else None
    return cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else "no handshake"


def _etag(headers: Mapping[str, str]) -> str | None:
    return _linked_etag(headers) or _bare(headers.get("ETag", ""))


def _linked_etag(headers: Mapping[str, str]) -> str | None:
    return _bare(headers.get("X-Linked-Etag", ""))


def _bare(etag: str) -> str | None:
    return etag.removeprefix("W/").strip('"') or None


def _following(url: SplitResult, place: str, name: str) -> SplitResult:
    try:
        return urlsplit(urljoin(url.geturl(), place))
    except ValueError:
        raise SourceNotAllowedError(f"the hub redirects {name} to what is no address", file=name) from None


def _origin(url: SplitResult) -> tuple[str, str, int | None]:
    try:
        port = url.port
    except ValueError:
        return "", "", None
    return url.scheme, url.hostname or "", port or _DEFAULT_PORTS.get(url.scheme)


def _place(url: SplitResult) -> str:
    """Return the host, and scheme and port where they are not https' own. The rest of an address may be a secret."""
    _, host, port = _origin(url)
    scheme = "" if url.scheme == "https" else f"{url.scheme}://"
    ending = "" if port in (None, _DEFAULT_PORTS.get(url.scheme)) else f":{port}"
    return re.sub(r"[^a-z0-9.:/-]", "?", f"{scheme}{host or url.hostname or 'none'}{ending}")[:100]


def _refuse_hub(problem: str, name: str) -> NoReturn:
    raise SourceError(f"the hub {problem}; check weightSources.huggingFace.endpoint (HF_ENDPOINT)", file=name)
