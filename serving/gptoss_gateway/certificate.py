"""The certificate of the listener for clients, followed as its files change.

Whoever renews it (cert-manager, say) replaces the files, in a mounted Secret all at once. New connections
get the new certificate, open ones keep theirs. A change that can't be used leaves the last good one in
force and is seen in the log and in a metric: an endpoint with an old certificate beats none.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from gptoss_gateway.errors import SettingsError
from gptoss_gateway.settings import TLS

_log = logging.getLogger(__name__)

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only; 1.3 has nothing else."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    context: ssl.SSLContext
    expires_at: float


class Certificate:
    """What handshakes are done with now.

    Raises:
        SettingsError: a file can't be used; only at start.
    """

    def __init__(self, settings: TLS) -> None:
        self._settings = settings
        self._seen = self._fingerprints()  # before they are read: what changes meanwhile is read again
        self._loaded = _load(settings)
        self.is_stale = False

    @property
    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        return self._loaded.context

    @property
    def expires_at(self) -> float:
        """End of the certificate's validity, in seconds since the epoch."""
        return self._loaded.expires_at

    def refresh(self) -> None:
        """Take over changed files; called once a second, beside the event loop.

        ``is_stale`` tells that they can't be used.
        """
        fingerprints = self._fingerprints()
        if fingerprints == self._seen:
            return
        try:
            self._loaded = _load(self._settings)
        except SettingsError as error:
            self.is_stale = True
            _log.error("certificate not reloaded, the last good one stays in force", extra={"error": str(error)})
        else:
            self.is_stale = False
            _log.info("certificate reloaded", extra={"expires_at": int(self.expires_at)})
        self._seen = fingerprints

    def _fingerprints(self) -> tuple[tuple[int, int, int] | None, ...]:
        files = (self._settings.cert_file, self._settings.key_file, self._settings.client_ca_file)
        return tuple(_fingerprint(path) for path in files if path is not None)


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _load(settings: TLS) -> _Loaded:
    """Read everything into a new context, so that a bad file spoils no good one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.minimum_version]
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        chain = x509.load_pem_x509_certificates(settings.cert_file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"tls.certFile {settings.cert_file}: has no certificate: {error}") from error
    try:
        context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_password)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"tls.keyFile {settings.key_file}: is not the unencrypted private key of {settings.cert_file}: {error}"
        ) from error
    if settings.client_ca_file is not None:
        _ask_clients(context, settings.client_ca_file)
    return _Loaded(context=context, expires_at=chain[0].not_valid_after_utc.timestamp())


def _ask_clients(context: ssl.SSLContext, authorities: Path) -> None:
    try:
        context.load_verify_locations(authorities)
    except (OSError, ValueError) as error:
        raise SettingsError(f"tls.clientCAFile {authorities}: has no certificates: {error}") from error
    if not context.get_ca_certs():
        raise SettingsError(f"tls.clientCAFile {authorities}: has no authority's certificate (CA:TRUE)")
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would let in who an authority, that was taken out since, had vouched for.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET


def _no_password() -> str:
    """Stand in for OpenSSL's own question, which would wait at the terminal."""
    raise ValueError("it is encrypted")
