"""A base is known by its configuration, wherever it lies; a hub id also by its name."""

import dataclasses
import json
from pathlib import Path

from fmstune.models import base_identity
from tests import small

HUB = base_identity.Base("owner/name", False, None, "0", {"hidden_size": 32})


def changed(folder: Path, **values: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def test_a_copy_elsewhere_is_the_same_base(tmp_path: Path) -> None:
    one, two = (small.save(tmp_path / name) for name in ("one", "two"))
    changed(
        two, transformers_version="4.0.0", dtype="bfloat16", _name_or_path="x", use_cache=False, pad_token_id=7, _any=1
    )
    found = [base_identity.identify_base(str(folder), None) for folder in (one, two)]
    assert found[0].config_sha256 == found[1].config_sha256
    assert list(base_identity.base_differences(*found)) == []


def test_another_base_is_told_by_its_values(tmp_path: Path) -> None:
    one = small.save(tmp_path / "one")
    two = changed(small.save(tmp_path / "two"), num_hidden_layers=1, rms_norm_eps=0.5)
    found = [base_identity.identify_base(str(folder), None) for folder in (one, two)]
    assert list(base_identity.base_differences(*found)) == [
        "num_hidden_layers is 1 and not 2",
        "rms_norm_eps is 0.5 and not 1e-06",
    ]


def test_of_another_architecture_no_single_values_are_listed(tmp_path: Path) -> None:
    one, two = small.save(tmp_path / "one"), small.save(tmp_path / "two", architecture=small.BIGCODE)
    found = [base_identity.identify_base(str(folder), None) for folder in (one, two)]
    assert list(base_identity.base_differences(*found)) == ["it is a gpt_bigcode and not a llama"]


def test_hub_ids_and_their_revisions_must_be_equal_and_folders_may_move() -> None:
    other = dataclasses.replace(HUB, id="owner/chat")
    assert list(base_identity.base_differences(HUB, other)) == ["it is owner/chat and not owner/name"]
    later = dataclasses.replace(HUB, revision="v2")
    assert list(base_identity.base_differences(HUB, later)) == ["its revision is v2 and not the default"]
    assert list(base_identity.base_differences(HUB, dataclasses.replace(HUB, id="/m", local=True))) == []


def test_the_identity_is_read_as_it_was_written_and_a_foreign_adapter_has_none(tmp_path: Path) -> None:
    base_identity.write_base(HUB, tmp_path)
    assert base_identity.read_base(tmp_path) == HUB
    (tmp_path / base_identity.FILE).write_text("{}")
    assert base_identity.read_base(tmp_path) is None
    assert base_identity.read_base(tmp_path / "nowhere") is None
