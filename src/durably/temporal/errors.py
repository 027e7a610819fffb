"""What goes wrong between an app and a Temporal server, apart from what ``temporalio`` itself raises."""

from durably.errors import Error


class TemporalSettingsError(Error):
    """A setting of the connection is unknown, malformed or missing; the message names it and its source."""


class TemporalUnreachableError(Error):
    """The Temporal server cannot be reached; the message names its address and the reason.

    ``address`` is ``host:port``. Trying again is worth it: the next use of the client connects anew.
    """

    def __init__(self, message: str, address: str) -> None:
        super().__init__(message)
        self.address = address


class TemporalCredentialsError(TemporalUnreachableError):
    """The server refuses the app's certificate or API key, or the app the server's certificate.

    The message names the setting, and has no secret in it.
    """


class TemporalVersionError(Error):
    """The installed ``temporalio`` does not fit; the message names its version, the part that differs, and a remedy."""


class TemporalWorkerError(Error):
    """Workers cannot be run as they are declared; the message names the task queue or module and what to do."""


class UnknownPrincipalError(TemporalSettingsError):
    """A principal cannot be told from others; the message names its class and ``Gateway(identify=…)``."""


class SearchAttributeError(Error):
    """The server does not know a search attribute that the app needs; the message names it and the remedy."""


class PayloadEncryptionError(Error):
    """A payload cannot be decrypted: its key is not among the codec's, or it was changed on its way."""
