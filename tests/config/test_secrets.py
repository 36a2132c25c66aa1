"""Credentials in URIs are never stored in the files of a run or a study."""

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

URI_WITH_CREDENTIALS = "ftp://me:p@ss@host/photos?version=1&access_token=abc"
MASKED_URI = "ftp://host/photos?version=1&access_token=***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (URI_WITH_CREDENTIALS, MASKED_URI),
        ("s3://bucket/a@b/c?x=1", "s3://bucket/a@b/c?x=1"),
        (
            "https://h/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=f00#part",
            "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***#part",
        ),
        ("a mail to me@host and key=value", "a mail to me@host and key=value"),
    ],
)
def test_users_passwords_and_tokens_are_removed_from_uris(text, masked):
    assert mask_credentials(text) == masked
    assert mask_credentials(masked) == masked


def test_a_stored_config_has_no_credentials_and_compares_as_equal(tmp_path):
    model = ModelConfig(weights=URI_WITH_CREDENTIALS)
    config = TrainConfig(dataset=URI_WITH_CREDENTIALS, model=model)
    (tmp_path / "config.yaml").write_text(to_stored_yaml(config))
    stored = load_yaml(TrainConfig, tmp_path / "config.yaml")
    assert (stored.dataset, stored.model.weights) == (MASKED_URI, MASKED_URI)
    assert list(differences(stored, config, 0)) == []
    other = dataclasses.replace(config, model=ModelConfig(weights=URI_WITH_CREDENTIALS + "&y=2"))
    assert [change.key for change in differences(stored, other, 0)] == ["model.weights"]
    study = TuneConfig(
        dataset="d", space="demo", mlflow="http://me:secret@host/", datasets={"large": URI_WITH_CREDENTIALS}
    )
    assert parse_yaml(TuneConfig, to_stored_yaml(study), "study").datasets == {"large": MASKED_URI}
    assert "secret" not in to_stored_yaml(study)
