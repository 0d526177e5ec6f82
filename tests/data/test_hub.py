"""Files on the hub are named by repository, revision and path, and are read from the hub's own cache."""

import pytest

from fmstune.data.hub import HubFiles, parse_place
from fmstune.errors import UserError


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("hf://datasets/owner/name", HubFiles("owner/name")),
        ("hf://datasets/owner/name/", HubFiles("owner/name")),
        ("hf://datasets/owner/name/data/train.jsonl", HubFiles("owner/name", None, "data/train.jsonl")),
        ("hf://datasets/owner/name@v1.0/data", HubFiles("owner/name", "v1.0", "data")),
        (
            "hf://datasets/ought/raft@refs/convert/parquet/twitter_complaints/train",
            HubFiles("ought/raft", "refs/convert/parquet", "twitter_complaints/train"),
        ),
        ("hf://datasets/owner/name@refs/pr/3", HubFiles("owner/name", "refs/pr/3")),
    ],
)
def test_a_place_on_the_hub_has_a_repository_a_revision_and_a_path(place: str, files: HubFiles) -> None:
    assert parse_place(place, "data.train") == files


@pytest.mark.parametrize(
    "place",
    [
        "hf://x",
        "hf://datasets/x",
        "hf://owner/name",
        "hf://datasets/a/b@",
        "hf://datasets/a/b/../c",
        "hf://datasets/a b/c",
    ],
)
def test_another_form_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="data.train must be like hf://datasets/OWNER/NAME@REVISION/PATH, got "):
        parse_place(place, "data.train")
