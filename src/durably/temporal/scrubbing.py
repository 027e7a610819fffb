"""Leave out of a text what looks like a credential. Knows texts alone, and not what they tell of.

A failure's message holds whatever the code that raised it put there: the repr of a request's headers, a database's
URL. Shows too little rather than too much. Each pattern takes time in proportion to the text, which may be long and
somebody else's: none begins with a repetition, and what is repeated ends where the next piece begins.
"""

import re

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

_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in [
        (r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)", _HIDDEN),
        # The user information of a URL.
        (r"(://)[^\s/@]*@", rf"\1{_HIDDEN}@"),
        (r"""(\bcookie["']?\s{0,3}[=:]\s{0,3})[^\r\n]+""", rf"\1{_HIDDEN}"),
        (r"""(\bauthorization["']?\s{0,3}[=:]\s{0,3}["']?)(?:\w+\s)?[^\s"',;]+""", rf"\1{_HIDDEN}"),
        (r"\b(bearer|basic)\s{1,3}[\w.~+/=-]{8,}", rf"\1 {_HIDDEN}"),
        # A name and its value, as in a query, a header, JSON, or a repr of Python's.
        (rf"""((?:{_NAMES})(?:[_-]\w{{1,30}}|id|\d{{1,3}})?["']?\s{{0,3}}[=:]\s{{0,3}}){_VALUE}""", rf"\1{_HIDDEN}"),
        # Tokens that can be told by their form: JWTs, and those of AWS, GitHub, GitLab, Slack, Stripe and others.
        (r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?", _HIDDEN),
        (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", _HIDDEN),
        (r"\b(?:gh[opsur]_|github_pat_|glpat-|xox[abeprs]-|[prs]k_(?:live|test)_|sk-)[\w-]{10,}", _HIDDEN),
    ]
]


MAXIMUM = 20_000
"""Characters that are kept. Failures may have two megabytes, which would hold up an event loop for seconds."""


def scrub(text: str) -> str:
    """A text that is too long ends with the number of characters that are left out."""
    if len(text) > MAXIMUM:
        return f"{scrub(text[:MAXIMUM])}… ({len(text) - MAXIMUM} more characters)"
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
