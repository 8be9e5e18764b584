"""WeightTrustPolicy: whose signatures an administrator accepts, for which models, from which sources."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from gptoss_api.model import DATE_TIME, ApiModel, Digest, Name, cel, rules


class LabelRequirement(ApiModel):
    """One requirement of a label selector."""

    key: Annotated[str, Field(min_length=1, max_length=317)] = Field(description="Label's key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How values are compared.")
    values: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=32)] = Field(
        default=(), description="Values for In and NotIn."
    )


class LabelSelector(ApiModel):
    """Selects namespaces by their labels. An empty selector selects all."""

    match_labels: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default_factory=dict,
        description="Labels that must have exactly these values.",
        json_schema_extra={"maxProperties": 32},
    )
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=32)] = Field(
        default=(), description="Further requirements; all must hold."
    )


class Source(ApiModel):
    """Where weights may come from."""

    prefix: Annotated[str, Field(min_length=6, max_length=1024)] = Field(
        description="URIs below this one are allowed, by whole path segments, such as s3://models or hf://owner.",
        json_schema_extra=cel(
            "self.matches('^(s3|az|hf|file)://[^?#@]+$')",
            "sources[].prefix must start with s3://, az://, hf:// or file:// and hold no credentials, query or "
            "fragment",
        ),
    )


class PublicKey(ApiModel):
    """An elliptic-curve public key (P-256, P-384 or P-521)."""

    public_key: Annotated[str, Field(min_length=64, max_length=4096)] = Field(
        alias="publicKeyPEM",
        description="PEM text of the SubjectPublicKeyInfo, as `gptoss weights keygen` writes it.",
        json_schema_extra=cel(
            "self.startsWith('-----BEGIN PUBLIC KEY-----')",
            "publicKeyPEM must be a PEM public key (BEGIN PUBLIC KEY), not a private key or certificate",
        ),
    )


class CertificateChain(ApiModel):
    """Signers whose certificate is vouched for by one of these roots, and by no others."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.subject) || has(self.subjectAltName)",
                "certificate must expect a subject or a subjectAltName: a root alone would trust all whom it certifies",
            ),
            cel(
                "!has(self.requireTransparencyLog) || !self.requireTransparencyLog",
                "certificate.requireTransparencyLog must not be true: bundles that are signed with such a certificate "
                "carry no entry of a transparency log; use sigstore, which always requires one",
                fieldPath=".requireTransparencyLog",
            ),
        )
    )

    roots: Annotated[str, Field(min_length=64, max_length=32768)] = Field(
        alias="rootsPEM",
        description="PEM text of the certificate authorities that are trusted. The system's and the web's are not.",
        json_schema_extra=cel(
            "self.startsWith('-----BEGIN CERTIFICATE-----')",
            "rootsPEM must be PEM certificates (BEGIN CERTIFICATE)",
        ),
    )
    subject: Annotated[str, Field(min_length=3, max_length=1024)] | None = Field(
        default=None,
        description="Whole subject of the signer's certificate, as RFC 4514 writes it, such as CN=release,O=Acme.",
    )
    subject_alt_name: Annotated[str, Field(min_length=5, max_length=1024)] | None = Field(
        default=None,
        description="A name that the signer's certificate must carry: URI:…, email:… or DNS:….",
        json_schema_extra=cel(
            "self.matches('^(URI|email|DNS):.+$')", "subjectAltName must start with URI:, email: or DNS:"
        ),
    )
    require_transparency_log: bool | None = Field(
        default=None, description="Must not be true: use sigstore where an entry in a transparency log is required."
    )


class SigstoreRoot(ApiModel):
    """What a Sigstore instance is recognised by. One of the two."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            "has(self.inline) != has(self.name)", "trustedRoot must hold exactly one of inline and name"
        )
    )

    inline: Annotated[str, Field(min_length=2, max_length=65536)] | None = Field(
        default=None,
        description="Text of a trusted_root.json: the instance's certificate authorities, logs and time-stamp "
        "authorities.",
        json_schema_extra=cel("self.startsWith('{')", "trustedRoot.inline must be the text of a trusted_root.json"),
    )
    name: Name | None = Field(
        default=None,
        description="Name of a trusted_root.json under sigstoreTrustedRoots of the operator's settings.",
    )


class SigstoreIdentity(ApiModel):
    """A signer whom a Sigstore instance certified for some minutes, with an entry in its transparency log."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.identity) != has(self.identityRegExp)",
                "sigstore must hold exactly one of identity and identityRegExp",
            ),
            cel(
                "self.requireTransparencyLog",
                "sigstore.requireTransparencyLog must be true: the certificate lives for minutes, and only the log "
                "says that it was valid when it signed",
                fieldPath=".requireTransparencyLog",
            ),
        )
    )

    identity: Annotated[str, Field(min_length=3, max_length=1024)] | None = Field(
        default=None,
        description="The signer, exactly as the certificate's only subject alternative name has it: an e-mail "
        "address or a URI, such as that of a workflow.",
    )
    identity_reg_exp: Annotated[str, Field(min_length=3, max_length=1024)] | None = Field(
        default=None,
        alias="identityRegExp",
        description="RE2 expression that must match the whole of the identity.",
        json_schema_extra=cel(
            "''.matches(self) in [true, false]", "identityRegExp must be a regular expression as RE2 has them"
        ),
    )
    issuer: Annotated[str, Field(min_length=8, max_length=1024)] = Field(
        description="Exact URL of the OpenID Connect provider that vouched for the identity.",
        json_schema_extra=cel("self.matches('^https?://.+$')", "issuer must be a URL, such as https://accounts.acme"),
    )
    trusted_root: SigstoreRoot = Field(description="The Sigstore instance. Nothing is fetched to verify a signature.")
    require_transparency_log: bool = Field(
        default=True, description="A signature counts only with its entry in the log. It can't be switched off."
    )


class Authority(ApiModel):
    """A signer that is trusted for some models, for some time."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.notBefore) || !has(self.notAfter) || self.notBefore < self.notAfter",
                "authorities[].notBefore must lie before notAfter",
                fieldPath=".notAfter",
            ),
            cel(
                "[has(self.key), has(self.certificate), has(self.sigstore)].filter(each, each).size() == 1",
                "authorities[] must hold exactly one of key, certificate and sigstore",
            ),
        )
    )

    name: Name = Field(description="Shown in status and metrics as the authority that matched.")
    models: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(min_length=1, max_length=64)
    ] = Field(description="Globs over the signed subject name, such as gpt-oss-*.")
    not_before: AwareDatetime | None = Field(
        default=None, description="Time from which the authority counts: a new key may be listed before it is used."
    )
    not_after: AwareDatetime | None = Field(
        default=None,
        description="Time after which the authority no longer counts: nothing new starts, what runs goes on.",
    )
    key: PublicKey | None = Field(default=None, description="The key that signs.")
    certificate: CertificateChain | None = Field(
        default=None,
        description="The certificates that sign: valid now, meant for code signing, and issued to the expected name.",
    )
    sigstore: SigstoreIdentity | None = Field(
        default=None, description="The identity that signs, with a short-lived certificate of a Sigstore instance."
    )


class Denied(ApiModel):
    """What is refused whoever signed it."""

    manifest_digests: Annotated[tuple[Digest, ...], Field(max_length=1024)] = Field(
        default=(), description="Digests of manifests that must not be started any more."
    )
    key_fingerprints: Annotated[tuple[Digest, ...], Field(max_length=1024)] = Field(
        default=(),
        description="Keys whose signatures no longer count, as status.weights.signer shows them: sha256: and the "
        "SHA-256 of the SubjectPublicKeyInfo.",
    )
    identities: Annotated[tuple[Annotated[str, Field(min_length=3, max_length=1024)], ...], Field(max_length=256)] = (
        Field(
            default=(),
            description="Signers whose signatures no longer count, as status.weights.identity shows them: a Sigstore "
            "identity, or a certificate's subject or one of its names (URI:…, email:… or DNS:…).",
        )
    )


class Releases(ApiModel):
    """The manifests of a model that may run, in the order they were released."""

    model: Annotated[str, Field(min_length=1, max_length=128)] = Field(description="The signed subject name, whole.")
    manifest_digests: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=256)] = Field(
        description="Digests of the released manifests, oldest first. A manifest may start if it is listed, and not "
        "before the latest one that was accepted; to go back, list the older one again at the end.",
    )


class AcceptedRelease(ApiModel):
    """The highest release of a model that was accepted."""

    model: Annotated[str, Field(max_length=128)] = Field(description="The signed subject name.")
    manifest_digest: Annotated[str, Field(max_length=71)] = Field(description="Digest of the manifest.")
    accepted_at: Annotated[str, Field(max_length=64)] = Field(
        description="When it was accepted.", json_schema_extra=DATE_TIME
    )


class WeightTrustPolicySpec(ApiModel):
    """Whose weights may run in which namespaces. Cluster-scoped and owned by administrators."""

    namespace_selector: LabelSelector | None = Field(
        default=None, description="Namespaces this policy is for; absent selects every namespace."
    )
    default: bool = Field(
        default=False,
        description="Applies to deployments of the selected namespaces that name no policy. "
        "Exactly one default may select a namespace.",
    )
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=64)] = Field(
        description="Where weights may come from."
    )
    authorities: Annotated[tuple[Authority, ...], Field(min_length=1, max_length=64)] = Field(
        description="Who may sign what.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    denied: Denied = Field(default_factory=Denied, description="Deny-lists; they override every authority.")
    releases: Annotated[tuple[Releases, ...], Field(max_length=64)] = Field(
        default=(),
        description="Guards against rollback: models listed here run released manifests only, and never an older one "
        "than was accepted before. Models that are not listed are not guarded.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["model"]},
    )
    on_revoked: Literal["Drain", "KeepRunning"] = Field(
        default="Drain",
        description="What becomes of replicas whose manifest or signer is denied while they run. Drain stops them: "
        "new requests are refused, running ones finish. KeepRunning leaves those that run, starts no more, and a "
        "model that sleeps does not wake.",
    )
    allow_audit: bool = Field(
        default=False,
        description="Deployments may set verification.mode to Audit, which waives the signer and nothing else.",
    )


class WeightTrustPolicyStatus(ApiModel):
    """What was accepted. Written by the operator only."""

    releases: Annotated[tuple[AcceptedRelease, ...], Field(max_length=128)] = Field(
        default=(),
        description="The highest release of each model that was accepted; older ones are refused from then on.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["model"]},
    )


class WeightTrustPolicy(ApiModel):
    """A policy with its name, as read from the API server."""

    name: str
    spec: WeightTrustPolicySpec
    status: WeightTrustPolicyStatus = Field(default_factory=WeightTrustPolicyStatus)
