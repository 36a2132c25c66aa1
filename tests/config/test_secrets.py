"""Credentials in URIs are in no file that a run or a study leaves."""

import dataclasses

import pytest

from landmark.config import (
    ModelConfig,
    TrainConfig,
    TuneConfig,
    load_yaml,
    mask_credentials,
    parse_yaml,
    to_stored_yaml,
)
from landmark.training.resume import differences

WITH = "ftp://me:p@ss@host/photos?version=1&access_token=abc"
WITHOUT = "ftp://host/photos?version=1&access_token=***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (WITH, WITHOUT),
        ("s3://bucket/a@b/c?x=1", "s3://bucket/a@b/c?x=1"),
        (
            "https://h/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=f00#part",
            "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***#part",
        ),
        ("a mail to me@host and key=value", "a mail to me@host and key=value"),
    ],
)
def test_uris_lose_users_passwords_and_tokens(text, masked):
    assert mask_credentials(text) == masked
    assert mask_credentials(masked) == masked


def test_a_stored_config_is_read_back_without_them_and_counts_as_the_same(tmp_path):
    model = ModelConfig(weights=WITH)
    config = TrainConfig(dataset=WITH, model=model)
    (tmp_path / "config.yaml").write_text(to_stored_yaml(config))
    stored = load_yaml(TrainConfig, tmp_path / "config.yaml")
    assert (stored.dataset, stored.model.weights) == (WITHOUT, WITHOUT)
    assert list(differences(stored, config, 0)) == []
    other = dataclasses.replace(config, model=ModelConfig(weights=WITH + "&y=2"))
    assert [change.key for change in differences(stored, other, 0)] == ["model.weights"]
    study = TuneConfig(dataset="d", space="demo", mlflow="http://me:secret@host/", datasets={"large": WITH})
    assert parse_yaml(TuneConfig, to_stored_yaml(study), "study").datasets == {"large": WITHOUT}
    assert "secret" not in to_stored_yaml(study)
