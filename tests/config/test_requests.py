"""A request reaches the runner as it was made."""

from pathlib import Path

from fmstune.config.after_training.serving import Serving, ServingEngine, Talk
from fmstune.config.choices import Device, Dtype
from fmstune.config.requests import Export, Generation, Harness, Merge, Method, Scoring, read_request, write_request


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    asked = Generation(
        model="run",
        text="é\n",
        stop=("a", "b"),
        format={"_target_": "fmstune.data.formats.alpaca"},
        dtype=Dtype.bfloat16,
        device=Device.cpu,
        temperature=0.5,
    )
    write_request(asked, tmp_path / "request.json")
    assert read_request(Generation, tmp_path / "request.json") == asked


def test_so_is_a_request_to_merge(tmp_path: Path) -> None:
    asked = Merge(model=("a", "b"), weight=(1.0, -0.5), out="m", export=Export.vllm_lora, dtype=Dtype.bfloat16)
    for one in (asked, Merge(model=("a",), out="m")):
        write_request(one, tmp_path / "request.json")
        assert read_request(Merge, tmp_path / "request.json") == one


def test_so_are_requests_to_evaluate(tmp_path: Path) -> None:
    scoring = Scoring(model="a", method=Method.rank, label=("x", "y"), job={"data": {}}, trusted=("p",))
    write_request(scoring, tmp_path / "request.json")
    assert read_request(Scoring, tmp_path / "request.json") == scoring
    harness = Harness(model="a", tasks=("x", "y"), limit=3, device=Device.cpu)
    write_request(harness, tmp_path / "harness.json")
    assert read_request(Harness, tmp_path / "harness.json") == harness


def test_so_are_requests_to_serve_and_to_chat(tmp_path: Path) -> None:
    serving = Serving(model="a", port=0, engine=ServingEngine.vllm, format={"_target_": "x"}, batch_size=2)
    write_request(serving, tmp_path / "request.json")
    assert read_request(Serving, tmp_path / "request.json") == serving
    talk = Talk(model="a", compare=True, temperature=0.5, system="é", device=Device.cpu)
    write_request(talk, tmp_path / "talk.json")
    assert read_request(Talk, tmp_path / "talk.json") == talk
