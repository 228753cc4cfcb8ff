import pytest

from segresmamba.storage import user


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("No username set")])
def test_a_user_without_a_name_is_a_number(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def nobody() -> str:
        raise error  # Python 3.11 and 3.13

    monkeypatch.setattr(user.getpass, "getuser", nobody)
    assert user.user_name().isdecimal()
