"""Values of the commands' flags."""

from collections.abc import Callable

from safetydpo.errors import SafetyDPOError


def whole_number(flag: str, least: int = 1) -> Callable[[str], int]:
    """What argparse reads a flag with: `50` or `50.0`; SafetyDPOError for what is no whole number, or below `least`."""

    def read(text: str) -> int:
        try:
            value = float(text)
            if value.is_integer() and value >= least:
                return int(value)
        except ValueError:
            pass
        raise SafetyDPOError(f"{flag} must be a whole number of at least {least}, not {text!r}.")

    return read
