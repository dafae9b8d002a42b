"""Values of the commands' flags."""

import pytest

from safetydpo.cli.flags import whole_number
from safetydpo.errors import SafetyDPOError


def test_whole_numbers_may_have_a_point():
    assert [whole_number("--n")(text) for text in ("50", "50.0", "1e2", "1")] == [50, 50, 100, 1]
    assert whole_number("--n", 0)("0") == 0


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "", "ten", "nan", "inf"])
def test_what_is_no_whole_number_is_said_with_its_flag(text):
    with pytest.raises(SafetyDPOError, match=rf"^--n must be a whole number of at least 1, not '{text}'\.$"):
        whole_number("--n")(text)
