"""A self-signed certificate, so that other devices can use HTTPS although this computer has no public host name.

The certificate is made by the command ``openssl``, which every Linux distribution that checks certificates has. The
package ``cryptography`` would do the same, at the price of a compiled dependency for one call.
"""

import hashlib
import ipaddress
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mnv4_mm.errors import UserError
from mnv4_mm.paths import user_cache

DAYS = 365  # of validity: browsers distrust certificates of more than 398 days
LEFT = 7 * 24 * 3600  # seconds of validity that a certificate must have left to be used again


def make_certificate(names: Sequence[str]) -> Path:
    """Return a PEM file with a private key and a self-signed certificate, which only this user can read.

    The file is kept in the user's cache and used again until a week before the certificate expires. So a browser whose
    user has accepted the certificate does not warn again.

    Args:
        names: Host names and IP addresses that the certificate is valid for.

    Returns:
        The path of the PEM file.

    Raises:
        UserError: The command ``openssl`` is missing or fails, or the file cannot be written.
    """
    names = sorted(set(names))
    path = user_cache() / 'demo' / f'server-{hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]}.pem'
    command = shutil.which('openssl')
    if command is None:
        raise UserError('--host: HTTPS needs the command openssl, which is not installed; --http serves without HTTPS')
    if path.is_file() and _run(command, 'x509', '-checkend', str(LEFT), '-noout', '-in', str(path)) is None:
        return path
    alternatives = ','.join(f'{"IP" if _is_address(name) else "DNS"}:{name}' for name in names)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            key, certificate = Path(folder) / 'key.pem', Path(folder) / 'certificate.pem'
            key.touch(0o600)  # openssl keeps the permissions of an existing file
            failure = _run(
                command, 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
                '-sha256', '-days', str(DAYS), '-subj', '/CN=mnv4 demo', '-addext', f'subjectAltName={alternatives}',
                '-addext', 'basicConstraints=critical,CA:FALSE',  # whoever trusts it trusts no other certificate

                '-keyout', str(key), '-out', str(certificate),
            )  # fmt: skip
            if failure is not None:
                raise UserError(f'--host: openssl cannot make a certificate ({failure}); --http serves without HTTPS')
            with key.open('ab') as file:
                file.write(certificate.read_bytes())
            key.replace(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}') from error
    return path


def fingerprint(path: Path) -> str:
    """Return the SHA-256 fingerprint of the certificate in a PEM file, as browsers show it: ``AB:CD:...``."""
    text = path.read_text()
    encoded = ssl.PEM_cert_to_DER_cert(text[text.index('-----BEGIN CERTIFICATE') :])
    return hashlib.sha256(encoded).digest().hex(':').upper()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _run(*command: str) -> str | None:
    """Run a command; return the last line of its errors if it fails, otherwise None."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1][:200]
