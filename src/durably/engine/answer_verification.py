"""Verification of an answer to a call, by its signature. Pure.

Without it, any process that answers at the app's URL could forge results. The protocol signs an answer's body.
Durably's SDK signs the whole answer: the status, the headers that decide about retries, the body, and the call
(``protocol.answer_signatures``). Of its answers only that signature counts.
"""

from collections.abc import Callable, Mapping

import msgspec

from durably.engine.answers import AttemptFailed, describe_failure, failed
from durably.protocol.answer_signatures import verify_answer
from durably.protocol.headers import Header
from durably.protocol.signatures import SignatureError, verify

_ECHOED = (
    "the app's answer (status {status}) is not used, since it is a signed request of the "
    "engine's own that was sent back; check what answers at the app's URL"
)


class AnswerVerification(msgspec.Struct, frozen=True):
    """Checks the answers to one call.

    ``keys`` are the engine's, ``call_signature`` is the call's signature, ``now`` is in unix seconds.
    ``signs_whole``: the app announced at its sync that it signs whole answers.
    ``was_sent`` tells whether the engine sent a signature header itself.
    """

    keys: tuple[str | None, str | None]
    call_signature: str
    signs_whole: bool
    now: float
    was_sent: Callable[[str], bool]

    def refuse(self, status: int, headers: Mapping[str, str], body: bytes, was_streamed: bool) -> AttemptFailed | None:
        """The failed attempt for an answer with a bad signature, or ``None`` if the signature is valid.

        Always retriable, after the usual delay, because unsigned headers decide nothing. ``headers`` has lower-case
        names.
        """
        signature = headers.get(Header.SIGNATURE)
        whole_signature = headers.get(Header.ANSWER_SIGNATURE) if self.signs_whole else None
        if not (signature or whole_signature):
            return failed("AnswerNotSignedError", _explain_unsigned(status, headers, body, was_streamed))
        try:
            if self.signs_whole:
                verify_answer(status, headers, body, call_signature=self.call_signature, keys=self.keys)
                return None
            verify(body, signature, self.keys, self.now)
            if self.was_sent(signature or ""):
                return failed("AnswerSignatureError", _ECHOED.format(status=status))
        except SignatureError as error:
            advice = "give app and engine the same DURABLY_SIGNING_KEY"
            if self.signs_whole and not whole_signature:
                advice = "if an older version of the app runs now, sync it again"
            message = f"the app's answer (status {status}) is not used, since its signature is wrong: {error}; {advice}"
            return failed("AnswerSignatureError", message)
        return None


def _explain_unsigned(status: int, headers: Mapping[str, str], body: bytes, was_streamed: bool) -> str:
    if status in (401, 403):
        advice = (
            "most likely the app has another signing key than the engine (DURABLY_SIGNING_KEY), or their clocks are "
            "more than five minutes apart"
        )
    elif was_streamed:
        advice = (
            "the official Python SDK does not sign streamed answers: switch streaming off in the app "
            "(INNGEST_STREAMING=disable), or take its answers unsigned (durably start --unsigned-answers-of APP)"
        )
    elif 200 <= status < 300 and headers.get(Header.SDK):
        advice = (
            "run the app in production mode, with the engine's DURABLY_SIGNING_KEY; if its SDK signs no answers, name "
            "the app to `durably start --unsigned-answers-of`"
        )
    else:
        advice = "check what answers at the app's URL"
    return f"the app's answer is not used, since it is not signed: {describe_failure(status, headers, body)}; {advice}"
