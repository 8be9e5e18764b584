"""Which public keys can have made an ECDSA signature, computed from the signature and what was signed.

A bundle that is signed with a bare key carries a hint of it only, and a deny-list knows fingerprints: whose signature
it is must be known of strangers too. The arithmetic is that of SEC 1 version 2.0, 4.1.6, on public values alone; what
it finds is to be believed once `cryptography` verifies the signature with it, and not before.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

# Field primes of SP 800-186, 3.2.1. All are 3 modulo 4, and the curves' coefficient a is -3.
_PRIMES: Final[Mapping[str, int]] = {
    "secp256r1": 2**256 - 2**224 + 2**192 + 2**96 - 1,
    "secp384r1": 2**384 - 2**128 - 2**96 + 2**32 - 1,
    "secp521r1": 2**521 - 1,
}


def candidate_keys(signature: bytes, digest: bytes, curve: ec.EllipticCurve) -> Iterator[ec.EllipticCurvePublicKey]:
    """Yield the keys on a curve that may have made a signature: two, or none where it is no signature on that curve.

    ``signature`` is DER; ``digest`` that of what was signed, no longer than the curve's order.
    """
    prime, order = _PRIMES[curve.name], curve.group_order
    try:
        r, s = decode_dss_signature(signature)
    except ValueError:
        return
    y = _root(_right_side(r, curve), prime)
    if y is None or not (0 < r < order and 0 < s < order):
        return
    # r is the abscissa of a point that the signer chose: as good as always, for the order is close to the prime. What
    # another one makes is nobody's here, and refused.
    nonce_point = ec.EllipticCurvePublicNumbers(r, y, curve).public_key()
    inverse = pow(r, -1, order)
    # The key is s/r times that point minus digest/r times the generator. Of the first we are told the abscissa.
    x = int.from_bytes(ec.derive_private_key(s * inverse % order, curve).exchange(ec.ECDH(), nonce_point))
    ordinate = _root(_right_side(x, curve), prime)
    scalar = -int.from_bytes(digest) * inverse % order
    if ordinate is None or scalar == 0:
        return
    other = ec.derive_private_key(scalar, curve).public_key().public_numbers()
    if other.x == x:
        return
    for each in (ordinate, prime - ordinate):
        slope = (other.y - each) * pow(other.x - x, -1, prime) % prime
        sum_x = (slope * slope - other.x - x) % prime
        sum_y = (slope * (x - sum_x) - each) % prime
        yield ec.EllipticCurvePublicNumbers(sum_x, sum_y, curve).public_key()


def _right_side(x: int, curve: ec.EllipticCurve) -> int:
    """Return x³ - 3x + b; b follows from the generator, which lies on the curve."""
    generator = ec.derive_private_key(1, curve).public_key().public_numbers()
    b = generator.y**2 - generator.x**3 + 3 * generator.x
    return (x**3 - 3 * x + b) % _PRIMES[curve.name]


def _root(square: int, prime: int) -> int | None:
    root = pow(square, (prime + 1) // 4, prime)
    return root if root * root % prime == square else None
