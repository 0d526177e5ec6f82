"""A model is pushed to a hub on this machine by the hub's own client: what it asks, sends, skips and refuses."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from fmstune.config.after_training.sharing import Push
from fmstune.errors import UserError
from fmstune.serving.push import push_model
from tests.fixtures.hub import Hub, served, use_in_this_process

# huggingface_hub 2.4 sends large files in a way that httpx2 has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN, NOT_MINE, UNKNOWN = (f"hf_{letter * 30}" for letter in "abc")
MODEL = {
    "README.md": b"---\nlibrary_name: transformers\n---\n",
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"1" * 2000,
    "model-00002-of-00002.safetensors": b"2" * 2000,
    "model.safetensors.index.json": b"{}",
}
Sent = Callable[..., str]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served(Hub({}, writers={TOKEN: "me", NOT_MINE: "you"})) as found:
        use_in_this_process(found, tmp_path / "hf", monkeypatch, TOKEN)
        # the client waits half a minute in all before it gives up
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tuned"
    folder.mkdir()
    for name, content in MODEL.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def push(hub: Hub, model: Path, capfd: pytest.CaptureFixture[str]) -> Sent:
    def run(repo: str = "me/tuned", **flags: Any) -> str:
        capfd.readouterr()
        hub.asked.clear()
        assert push_model(Push(run=str(model), repo=repo, **flags)) == 0
        out, err = capfd.readouterr()
        assert TOKEN not in out + err
        return out

    return run


def on_hub(hub: Hub, repo: str = "me/tuned") -> dict[str, bytes]:
    return {name: content for name, content in hub.repos[f"models/{repo}"]["main"].items() if name != ".gitattributes"}


def large(hub: Hub) -> int:
    """How many large files were sent whole in the last push."""
    return sum(asked.startswith("PUT /lfs/") for asked in hub.asked)


def test_a_new_repository_is_private_and_has_all_files(hub: Hub, push: Sent) -> None:
    said = push()
    assert on_hub(hub) == MODEL
    assert hub.private == {"models/me/tuned"}
    assert f"sent 5 files (0.0 MiB) to {hub.endpoint}/me/tuned (private)" in said
    assert "fmstune generate --model me/tuned" in said


def test_a_new_repository_is_public_where_that_is_asked_for(hub: Hub, push: Sent) -> None:
    assert "(public)" in push(public=True)
    assert on_hub(hub) == MODEL
    assert hub.private == set()


def test_what_stays_here_is_said_before_anything_else(model: Path, push: Sent) -> None:
    (model / "optimizer.pt").touch()
    (model / "generation_config.json").write_text('{"from": "/gpfs/me/x"}')
    said = push()
    assert said.startswith(
        "left out of the files\n  generation_config.json  from: /gpfs/me/x → x\nnot sent: optimizer.pt\n\nme/tuned:"
    )


def test_a_dry_run_lists_files_sizes_and_what_is_there_and_sends_nothing(hub: Hub, model: Path, push: Sent) -> None:
    said = push(dry_run=True)
    assert "me/tuned: a new repository, private" in said
    assert re.search(r"^  model-00001-of-00002\.safetensors +2,000 B  new$", said, re.MULTILINE)
    assert said.endswith("nothing was sent (--dry-run)\n")
    push()
    (model / "config.json").write_text("[]")
    (model / "tokenizer.json").write_text("{}")
    said = push(dry_run=True)
    assert "me/tuned: is there, private, with 6 files" in said
    states = {line.split()[0]: line.split("  ")[-1] for line in said.splitlines() if " B  " in line}
    assert states == {
        "README.md": "the same on the hub",
        "config.json": "differs from the hub's",
        "model-00001-of-00002.safetensors": "the same on the hub",
        "model-00002-of-00002.safetensors": "the same on the hub",
        "model.safetensors.index.json": "the same on the hub",
        "tokenizer.json": "new",
    }
    assert not any(asked.startswith(("POST", "PUT")) for asked in hub.asked)
    assert on_hub(hub) == MODEL


def test_a_dry_run_without_a_token_says_what_it_cannot_see(
    hub: Hub, push: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    push()
    monkeypatch.delenv("HF_TOKEN")
    assert "me/tuned: no repository that can be seen without a token" in push(dry_run=True)


def test_a_dry_run_without_a_hub_lists_the_files(push: Sent, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = push(dry_run=True)
    assert "the hub was not asked (HF_HUB_OFFLINE is set)" in said and "config.json" in said
    assert hub.asked == []


def test_equal_files_are_skipped_and_counted(hub: Hub, model: Path, push: Sent) -> None:
    push()
    assert "sent nothing to" in (said := push()) and "; 5 files the same already" in said
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert "sent 1 file (0.0 MiB)" in push()
    assert large(hub) == 0
    assert on_hub(hub) == {**MODEL, "chat_template.jinja": b"{{ messages }}"}


def test_different_files_are_all_named_in_one_error_and_kept_unless_forced(hub: Hub, model: Path, push: Sent) -> None:
    push()
    (model / "config.json").write_text("[]")
    (model / "model-00002-of-00002.safetensors").write_bytes(b"3" * 2000)
    with pytest.raises(UserError) as refused:
        push()
    assert str(refused.value) == (
        "--repo: me/tuned has 2 files with other content (config.json, model-00002-of-00002.safetensors); nothing was "
        "sent: add --force to overwrite them"
    )
    assert on_hub(hub) == MODEL
    assert "sent 2 files" in push(force=True)
    assert on_hub(hub) == {**MODEL, "config.json": b"[]", "model-00002-of-00002.safetensors": b"3" * 2000}


def test_files_that_would_be_loaded_in_place_of_those_that_are_sent_go_with_force(
    hub: Hub, model: Path, push: Sent
) -> None:
    push()
    for path in model.glob("model*"):
        path.unlink()
    (model / "model.safetensors").write_bytes(b"4")
    shards = "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, model.safetensors.index.json"
    with pytest.raises(UserError) as refused:
        push()
    assert str(refused.value) == (
        f"--repo: me/tuned has files of another model ({shards}); nothing was sent: add --force to remove them"
    )
    assert f"removed   {shards}" in push(force=True)
    assert sorted(on_hub(hub)) == ["README.md", "config.json", "model.safetensors"]


def test_a_public_repository_takes_a_model_only_where_that_is_asked_for(hub: Hub, push: Sent) -> None:
    push(public=True)
    with pytest.raises(UserError, match="me/tuned is public; add --public to send the model there, or choose another"):
        push()


def test_a_private_repository_stays_private(hub: Hub, push: Sent) -> None:
    push()
    assert "it stays private, and its settings on the hub make it public" in push(public=True)
    assert hub.private == {"models/me/tuned"}


def test_an_upload_that_broke_off_is_taken_up_again_with_what_is_missing(hub: Hub, model: Path, push: Sent) -> None:
    hub.breaks = lambda half: half.startswith(b"2")
    with pytest.raises(UserError) as broken:
        push()
    assert str(broken.value).startswith(f"--repo: {hub.endpoint} broke off (")
    assert str(broken.value).endswith(
        "the files that were sent whole are kept there: give the same command again to send the rest"
    )
    assert on_hub(hub) == {}  # nobody sees half a model
    assert any(asked.startswith("broke /lfs/") for asked in hub.asked)

    hub.breaks = lambda half: False
    push()
    assert large(hub) == 1
    assert on_hub(hub) == MODEL


def test_a_repository_that_changed_meanwhile_is_not_overwritten(
    hub: Hub, model: Path, push: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    push()
    (model / "config.json").write_text("[]")
    commit = hub._commit

    def late(repo: str, body: bytes) -> Any:
        hub.repos = {repo: {"main": {**hub.repos[repo]["main"], "other": b""}}}
        return commit(repo, body)

    monkeypatch.setattr(hub, "_commit", late)
    with pytest.raises(UserError, match="me/tuned was changed meanwhile .*; give the same command again"):
        push(force=True)
    assert on_hub(hub) == {**MODEL, "other": b""}


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (
            NOT_MINE,
            "--repo: the token may not write to me/tuned (You don't have the rights to create a model under the "
            'namespace "me"); take one with write access for me, or another USER',
        ),
        (
            UNKNOWN,
            "--repo: {endpoint} does not accept the token; log in with `hf auth login`, or set HF_TOKEN to a token "
            "with write access",
        ),
    ],
)
def test_a_token_that_is_not_enough_is_one_message_without_the_token(
    hub: Hub, push: Sent, monkeypatch: pytest.MonkeyPatch, token: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as refused:
        push()
    assert str(refused.value) == said.format(endpoint=hub.endpoint)
    assert hub.repos == {}


def test_a_hub_that_cannot_be_reached_is_one_message(push: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^--repo: http://127\.0\.0\.1:9 broke off \(.*refused.*\); try again$"):
        push()
