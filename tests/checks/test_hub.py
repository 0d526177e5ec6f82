"""What a job needs of the hub is asked for before a heavy import, and all that is missing is said at once."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from fmstune.checks import hub
from fmstune.checks.hub import HubModel, base_of, fetch_file, hub_problems, push_token_problems, request_problems
from fmstune.config.after_training.sharing import Push
from fmstune.config.freeze import freeze
from fmstune.config.job import Job
from fmstune.config.requests import Verb
from tests.composing import composed_tree
from tests.fixtures.hub import Hub, served

LLAMA = "models/meta-llama/Llama-2-13b-hf"
ALPACA = "datasets/tatsu-lab/alpaca"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    hub._reason.cache_clear()


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"main": {"config.json": b"{}", "tokenizer_config.json": b"{}"}}
    with served(Hub({LLAMA: files, ALPACA: {"main": {"train.parquet": b""}}})) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
        places = found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", places)
        yield found


def job(*words: str) -> Job:
    return freeze(composed_tree(*words)).job


USERS = ("model=llama2_13b", "peft=lora", "data=alpaca")


def said(*words: str, verb: Verb = Verb.train) -> list[str]:
    return [str(problem) for problem in hub_problems(job(*words), verb)]


def test_a_job_of_shipped_files_asks_nothing(local_hub: Hub) -> None:
    assert said() == []
    assert local_hub.asked == []


def test_what_the_hub_has_is_no_problem_and_is_asked_for_once(local_hub: Hub) -> None:
    assert said(*USERS) == said(*USERS) == []
    assert sorted(local_hub.asked) == [
        "GET /api/datasets/tatsu-lab/alpaca/revision/main",
        "HEAD /meta-llama/Llama-2-13b-hf/resolve/main/config.json",
    ]


def test_without_a_network_model_and_data_are_said_together_with_how_to_get_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, data = said(*USERS)
    assert model == (
        "model.path: no folder is named meta-llama/Llama-2-13b-hf, and it is neither in the hub's cache nor can the "
        "hub be reached (HF_HUB_OFFLINE is set); give model.path=DIR, set HF_ENDPOINT to a mirror, or fetch it "
        "elsewhere: hf download meta-llama/Llama-2-13b-hf --local-dir Llama-2-13b-hf (then model.path=Llama-2-13b-hf)"
    )
    assert data.startswith("data.train: no folder is named tatsu-lab/alpaca, and it is neither in the hub's cache nor ")
    assert data.endswith("hf download tatsu-lab/alpaca --repo-type dataset --local-dir alpaca (then data.train=alpaca)")


def test_files_of_a_revision_are_fetched_with_that_revision_and_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (data,) = said("data=twitter_complaints")
    assert data.endswith(
        "hf download ought/raft --repo-type dataset --revision refs/convert/parquet "
        "--include 'twitter_complaints/train/*' --local-dir raft (then data.train=raft/twitter_complaints/train)"
    )


@pytest.mark.parametrize("endpoint", ["refuses", "is silent", "is a gateway"])
def test_a_hub_that_does_not_answer_is_given_up_soon(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, served(Hub({})) as gateway:
        closed = "http://127.0.0.1:9"
        urls = {"refuses": closed, "is silent": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        monkeypatch.setattr(constants, "ENDPOINT", urls.get(endpoint, f"{gateway.endpoint}/nothing"))
        begun = time.monotonic()
        found = said(*USERS)
    assert time.monotonic() - begun < 5
    assert [text.partition(":")[0] for text in found] == ["model.path", "data.train"]
    assert all("nor can the hub be reached (" in text for text in found)


def test_the_hubs_own_words_are_said_of_each(local_hub: Hub) -> None:
    local_hub.gated = frozenset({LLAMA})
    model, data = said(*USERS, "++data.train=owner/nosuch")
    assert model == (
        "model.path: meta-llama/Llama-2-13b-hf is gated; accept its terms at "
        "https://huggingface.co/meta-llama/Llama-2-13b-hf and log in with `hf auth login`"
    )
    assert data == (
        "data.train: neither a folder nor a hub dataset is named owner/nosuch; if private, `hf auth login` first"
    )
    local_hub.gated = frozenset()
    (revision,) = said("model=llama2_13b", "++model.revision=nosuch", "++model.tokenizer=package:tiny_llama")
    assert revision.startswith("model.path: meta-llama/Llama-2-13b-hf has no revision 'nosuch'; see ")


def test_a_request_names_all_that_is_missing_of_its_models_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base", "revision": "v1"}')
    base = base_of(str(tmp_path))
    assert base == HubModel("owner/base", "v1")
    models = [("--model", HubModel("owner/tuned")), ("--model", HubModel(str(tmp_path))), ("--base", base)]
    found = [str(one) for one in request_problems(models, job("data=alpaca", "++data.eval=owner/rows"))]
    assert [text.partition(":")[0] for text in found] == ["--model", "--base", "data.eval"]
    assert found[0].endswith("hf download owner/tuned --local-dir tuned (then --model tuned)")
    assert "hf download owner/base --revision v1 --local-dir base" in found[1]
    (tmp_path / "base.json").write_text('{"id": "gone/base", "local": true, "revision": null}')
    assert base_of(str(tmp_path)) is None


def test_a_model_or_an_adapter_in_the_cache_can_be_asked_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for number, names in enumerate((("config.json", "a.safetensors"), ("adapter_config.json", "b.safetensors"))):
        cached = tmp_path / "hf" / "hub" / f"models--owner--model{number}"
        (cached / "snapshots" / "abc").mkdir(parents=True)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("abc")
        assert len(list(request_problems([("--model", HubModel(f"owner/model{number}"))]))) == 1
        for name in names:
            (cached / "snapshots" / "abc" / name).touch()
        assert list(request_problems([("--model", HubModel(f"owner/model{number}"))])) == []


def test_what_is_in_the_cache_or_a_folder_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "hf" / "hub" / "models--meta-llama--Llama-2-13b-hf"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    assert len(said("model=llama2_13b")) == 1
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (cached / "snapshots" / "abc" / name).touch()
    assert said("model=llama2_13b") == []
    (tmp_path / "hf" / "datasets" / "tatsu-lab___alpaca" / "default").mkdir(parents=True)
    (tmp_path / "owner" / "rows").mkdir(parents=True)
    assert said("data=alpaca") == said("data=alpaca", "++data.train=owner/rows") == []


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        (Verb.train, ["model.path", "data.train"]),
        # its architecture is known, so the plan needs neither weights nor tokenizer
        (Verb.check, ["data.train"]),
        (Verb.show_data, ["model.path", "data.train"]),
        (Verb.modules, []),
    ],
)
def test_a_verb_asks_for_what_it_needs(verb: Verb, fields: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [text.partition(":")[0] for text in said(*USERS, verb=verb)] == fields


def test_weights_are_fetched_only_for_who_loads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    whole = "hf download meta-llama/Llama-2-13b-hf --local-dir Llama-2-13b-hf"
    without = "--include '*.json' --include '*.jinja' --include '*.model' --include '*.txt' --local-dir"
    words = ("peft=lora", "++model.tokenizer=a/b", "++model.adapter=c/d")
    model, tokenizer, adapter = said("model=llama2_13b", *words)
    assert whole in model
    assert f"hf download a/b {without} b (then model.tokenizer=b)" in tokenizer
    assert "hf download c/d --local-dir d (then model.adapter=d)" in adapter
    (shown,) = said("model=llama2_13b", verb=Verb.show_data)
    assert f"hf download meta-llama/Llama-2-13b-hf {without} Llama-2-13b-hf (then" in shown


def test_a_file_of_a_repository_is_fetched_or_there_is_none(local_hub: Hub, tmp_path: Path) -> None:
    fetched = fetch_file(HubModel("meta-llama/Llama-2-13b-hf"), "config.json")
    assert fetched is not None and fetched.read_text() == "{}"
    assert fetch_file(HubModel("meta-llama/Llama-2-13b-hf"), "job.yaml") is None
    assert fetch_file(HubModel("meta-llama/nosuch"), "job.yaml") is None
    asked = len(local_hub.asked)
    assert fetch_file(HubModel(str(tmp_path)), "job.yaml") is None
    assert len(local_hub.asked) == asked


def test_a_push_needs_a_token_and_a_hub_and_a_dry_run_neither(local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def said_of_push(**flags: bool) -> list[str]:
        return [str(one) for one in push_token_problems(Push(run="r", repo="me/r", **flags))]

    monkeypatch.delenv("HF_TOKEN", raising=False)
    without = "--repo: to push needs a token with write access; log in with `hf auth login`, or set HF_TOKEN"
    assert said_of_push() == [without]
    assert said_of_push(dry_run=True) == []
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert said_of_push() == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert said_of_push() == ["push needs the hub, and HF_HUB_OFFLINE is set; unset it, or add --dry-run"]


def test_a_slurm_job_is_left_to_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert said(*USERS, "launcher=slurm") == []
