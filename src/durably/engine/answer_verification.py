"""Whether an answer to a call comes from the app, as its signature tells. Pure.

Without it, whoever can answer in the app's place decides what its functions return. The protocol signs an answer's
body; our own SDK signs status, deciding headers and the call too (``protocol.answer_signatures``).
"""

from collections.abc import Mapping

import msgspec

from durably.engine.answers import AttemptFailed, describe_failure, failed
from durably.protocol.answer_signatures import verify_answer
from durably.protocol.headers import Header
from durably.protocol.signatures import SignatureError, verify


class AnswerVerification(msgspec.Struct, frozen=True):
    """Checks the answers to one call.

    ``keys`` are the engine's, ``call_signature`` is the one that the call was sent with, ``now`` unix seconds.
    ``signs_whole`` says that the app has synced as one that signs whole answers.
    """

    keys: tuple[str | None, str | None]
    call_signature: str
    signs_whole: bool
    now: float

    def refuse(self, status: int, headers: Mapping[str, str], body: bytes, was_streamed: bool) -> AttemptFailed | None:
        """The failed attempt that an answer amounts to, or ``None`` if its signature is good.

        Always retriable, and at the usual time: what is not signed decides nothing. ``headers`` has lower-case names.
        """
        signature = headers.get(Header.SIGNATURE)
        if not signature:
            return failed("AnswerNotSignedError", _explain_unsigned(status, headers, body, was_streamed))
        try:
            key = verify(body, signature, self.keys, self.now)
            if self.signs_whole:
                verify_answer(status, headers, body, call_signature=self.call_signature, key=key)
        except SignatureError as error:
            advice = "give app and engine the same DURABLY_SIGNING_KEY"
            if self.signs_whole and not headers.get(Header.ANSWER_SIGNATURE):
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
