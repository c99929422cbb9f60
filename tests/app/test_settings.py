"""Settings come from the environment, are checked, and keep their secrets."""

import pytest
from pydantic import ValidationError

from app.cli import main
from app.settings import Settings, unknown_variables


def test_a_setting_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAM_MAX_QUEUE", "7")
    assert Settings().max_queue == 7
    assert Settings(max_queue=9).max_queue == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAM_DEVICE", "tpu"),
        ("NAM_PORT", "70000"),
        ("NAM_MAX_QUEUE", "0"),
        ("NAM_TIMEOUT_MS", "soon"),
        ("NAM_MAX_PIXELS", "9" * 30),
        ("NAM_BODY_IDLE_MS", "9" * 400),
    ],
)
def test_a_value_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.removeprefix("NAM_").lower()):
        Settings()


def test_every_setting_has_a_sentence_and_a_default() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description is not None, name
        assert field.description.endswith("."), name
        assert not field.is_required(), name


def test_keys_are_separated_by_commas_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NAM_API_KEYS", " tell-nobody ,, second ")
    assert Settings().keys == ("tell-nobody", "second")
    assert main(["settings"]) == 0
    assert "tell-nobody" not in capsys.readouterr().out


def test_a_variable_that_is_no_setting_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NAM_PROT", "9000")
    assert unknown_variables() == ["NAM_PROT"]
    main(["settings"])
    assert "NAM_PROT is not a setting" in capsys.readouterr().err


def test_another_process_finds_the_same_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Settings(weights="mine", max_batch=3, api_keys="one,two", cache_dir="/somewhere")
    for name, value in chosen.environment(keys=True).items():
        monkeypatch.setenv(name, value)
    assert Settings() == chosen
    assert Settings().keys == ("one", "two")
