"""``QUANTRY_ARTIFACTS_URL`` names a directory or a bucket, and nothing that looks like one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.artifacts import LocalStore, open_store
from jobs.settings import Settings
from jobs.settings.artifact_location import ArtifactLocation, artifact_location


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("file:///srv/artifacts", ArtifactLocation(scheme="file", directory=Path("/srv/artifacts"))),
        ("file://localhost/srv/a%20b", ArtifactLocation(scheme="file", directory=Path("/srv/a b"))),
        ("s3://my-bucket", ArtifactLocation(scheme="s3", bucket="my-bucket")),
        ("s3://my.bucket/", ArtifactLocation(scheme="s3", bucket="my.bucket")),
        ("s3://bucket/some/place/", ArtifactLocation(scheme="s3", bucket="bucket", prefix="some/place")),
    ],
)
def test_a_directory_or_a_bucket(url: str, location: ArtifactLocation) -> None:
    assert artifact_location(url) == location
    assert Settings(artifacts_url=url).artifacts_location == location


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("/srv/artifacts", "leave it unset"),
        ("https://bucket.s3.amazonaws.com", "leave it unset"),
        ("gs://bucket", "leave it unset"),
        ("file://srv/artifacts", "three slashes"),
        ("file:artifacts", "three slashes"),
        ("file:///", "three slashes"),
        ("file:///srv/%00", "three slashes"),
        ("s3://", "3 to 63"),
        ("s3://ab", "3 to 63"),
        ("s3://Bucket", "3 to 63"),
        ("s3://hush:hush@bucket/x", "AWS_ACCESS_KEY_ID"),
        ("s3://localhost:9000/bucket", "QUANTRY_S3_ENDPOINT_URL"),
        ("s3://bucket/../hush", "prefix"),
        ("s3://bucket/a//hush", "prefix"),
        ("s3://bucket/hush?region=x", "takes no"),
    ],
)
def test_anything_else_is_refused_with_a_remedy_and_not_repeated(url: str, why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(artifacts_url=url)
    said = str(refused.value)
    assert "QUANTRY_ARTIFACTS_URL must be" in said
    assert why in said
    assert "hush" not in said


def test_unset_means_the_data_directory(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    store = open_store(settings)
    assert isinstance(store, LocalStore)
    assert store.root == settings.artifacts_dir
    elsewhere = open_store(Settings(data_dir=tmp_path, artifacts_url=f"file://{tmp_path}/elsewhere"))
    assert isinstance(elsewhere, LocalStore)
    assert elsewhere.root == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    "wrong",
    [
        {"s3_endpoint_url": "minio:9000"},
        {"s3_endpoint_url": "http://key:secret@minio"},
        {"s3_part_bytes": 1 << 20},
        {"gc_grace_seconds": 1},
    ],
)
def test_settings_that_no_store_could_live_with(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=f"QUANTRY_{next(iter(wrong)).upper()} must be"):
        Settings.model_validate(wrong)
