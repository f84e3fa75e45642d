"""When a profile is measured anew because instructions have drifted from it, and that it cannot go on for ever. Pure.

What is written down lies beside the corrections, in the frontier's ConfigMap: an operator that starts anew goes on with
a measurement that was begun, and counts those before. One that was begun is over once the job has another profile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from perseus_api.errors import DocumentError

# Another one so soon would not find other times: what is left of the drift is corrected.
REPEAT_SECONDS = 3600
# One that comes to no end gives way to the profile as it was.
LONGEST_SECONDS = 4 * 3600
MAXIMUM_BYTES = 1024
_MOST = 2**53


@dataclass(frozen=True)
class Repeats:
    """The measurements of a job that drifts have asked for.

    Attributes:
        number: how many have been begun.
        begun_unix_seconds: when the last one was.
        profile: checksum of the profile that had drifted then.
        is_open: whether it has not been given up.
    """

    number: int = 0
    begun_unix_seconds: int = 0
    profile: str = ""
    is_open: bool = False

    def may_begin(self, most: int, now_unix_seconds: float) -> bool:
        """Whether another one may begin, of so many at most."""
        return self.number < most and now_unix_seconds - self.begun_unix_seconds >= REPEAT_SECONDS

    def begin(self, profile: str, now_unix_seconds: float) -> Repeats:
        """Return what is written down when another one begins."""
        return Repeats(self.number + 1, int(now_unix_seconds), profile, is_open=True)

    def close(self) -> Repeats:
        """Return what is written down when it is over, or given up."""
        return replace(self, is_open=False)

    def goes_on(self, profile: str, now_unix_seconds: float) -> bool:
        """Whether the profile in use is being measured anew."""
        # An operator's clock that is behind the one before it must not make it endless.
        lasts = abs(now_unix_seconds - self.begun_unix_seconds) < LONGEST_SECONDS
        return self.is_open and self.profile == profile and lasts

    def encode(self) -> str:
        """Return it as JSON; empty where nothing was ever begun."""
        if not self.number:
            return ""
        document = {
            "number": self.number,
            "begun": self.begun_unix_seconds,
            "profile": self.profile,
            "open": self.is_open,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Repeats:
        """Read it.

        Raises:
            DocumentError: it is damaged or out of bounds.
        """
        try:
            if len(text) > MAXIMUM_BYTES:
                raise ValueError("too large")
            document = json.loads(text)
            number, begun = document["number"], document["begun"]
            if type(number) is not int or type(begun) is not int or not (0 < number < _MOST and 0 <= begun < _MOST):
                raise ValueError("out of bounds")
            if not isinstance(document["profile"], str) or not isinstance(document["open"], bool):
                raise ValueError("neither a profile nor a state")
            return cls(number, begun, document["profile"], document["open"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DocumentError(f"the repeated measurements are not valid: {error}") from None
