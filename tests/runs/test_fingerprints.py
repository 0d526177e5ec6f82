"""Fingerprints of two runs: what departs first, where, and what does not count as a departure."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fmstune.errors import UserError
from fmstune.runs.fingerprints import (
    FILE,
    SAMPLES,
    ModulePrint,
    Numbers,
    StepPrint,
    first_departure,
    read_fingerprints,
    write_fingerprints,
)

KIND = "float32 2x3"
IDS = Numbers(9.0, 14.0, 9.0, "int64 2x3")


def numbers(total: float, weighted: float = 2.0) -> Numbers:
    return Numbers(total, weighted, 10.0, KIND)


def call(module: str, given: Numbers, output: Numbers, kind: str = "Linear") -> ModulePrint:
    return ModulePrint(module, kind, given, output)


EMBED = call("embed", IDS, numbers(1.0), "Embedding")
QUERY = call("layer.q", numbers(1.0), numbers(2.0))
OUT = call("layer.o", numbers(3.0), numbers(4.0))
ATTENTION = call("layer", numbers(1.0), numbers(4.0), "Attention")
STEP = StepPrint(0, 0.5, (EMBED, QUERY, OUT, ATTENTION), {"embed": 1.0, "layer.q": 2.0})


def changed(**calls: ModulePrint) -> StepPrint:
    return replace(STEP, modules=tuple(calls.get(one.module.replace(".", "_"), one) for one in STEP.modules))


def test_equal_runs_do_not_depart() -> None:
    assert first_departure([STEP, STEP], [STEP, STEP]) is None


def test_what_one_run_has_not_recorded_is_not_compared() -> None:
    assert first_departure([STEP], [STEP, replace(STEP, step=1, loss=9.0)]) is None
    assert first_departure([], [STEP]) is None
    assert first_departure([STEP], [replace(STEP, modules=STEP.modules[2:], loss=None, gradients={})]) is None


def test_sums_that_were_added_in_another_order_are_equal() -> None:
    other = changed(embed=call("embed", IDS, numbers(1.0 + 5e-13)))
    assert first_departure([STEP], [other]) is None


def test_the_module_whose_output_departs_by_itself_is_named() -> None:
    other = changed(layer_q=call("layer.q", numbers(1.0), numbers(2.5, 2.1)))
    found = first_departure([STEP], [other])
    assert found is not None
    assert (found.step, found.module) == (0, "layer.q")
    assert "the output of layer.q (Linear) departs; its input does not, and its weights or its code" in found.text
    assert "(by 1.0e-02 of its size)" in found.text


def test_a_module_that_computes_between_its_parts_is_named_and_not_the_part_after() -> None:
    # as attention does: the products lie between q and o, and in neither
    other = changed(
        layer_o=call("layer.o", numbers(3.1), numbers(4.1)), layer=call("layer", numbers(1.0), numbers(4.1), "Other")
    )
    found = first_departure([STEP], [other])
    assert found is not None and found.module == "layer"
    assert "layer (Attention, in B Other)" in found.text


def test_numbers_that_have_changed_places_depart() -> None:
    other = changed(embed=call("embed", IDS, numbers(1.0, weighted=2.1)))
    found = first_departure([STEP], [other])
    assert found is not None and found.module == "embed"


def test_another_dtype_is_said() -> None:
    output = numbers(1.0)._replace(kind="bfloat16 2x3")
    found = first_departure([STEP], [changed(embed=call("embed", IDS, output))])
    assert found is not None
    assert found.text.endswith("departs; float32 2x3 in A and bfloat16 2x3 in B")


def test_other_tokens_in_the_first_batch_are_said_before_any_module() -> None:
    other = changed(embed=call("embed", IDS._replace(total=8.0), numbers(1.5)))
    found = first_departure([STEP], [other])
    assert found is not None
    assert found.module == "" and found.text == "step 0: its first batch holds other tokens (int64 2x3)"


def test_a_loss_alone_that_departs_is_said() -> None:
    found = first_departure([STEP], [replace(STEP, loss=0.6)])
    assert found is not None and found.text == "step 0: the loss departs (0.5 and 0.6), no module does"


def test_of_gradients_the_last_module_is_named_as_the_backward_pass_begins_there() -> None:
    found = first_departure([STEP], [replace(STEP, gradients={"embed": 1.5, "layer.q": 2.5})])
    assert found is not None
    assert found.module == "layer.q" and "the gradient of layer.q departs (norm 2 and 2.5)" in found.text


def test_a_later_step_is_named_where_the_first_is_equal() -> None:
    later = replace(changed(layer_q=call("layer.q", numbers(1.0), numbers(2.5))), step=1)
    found = first_departure([STEP, replace(STEP, step=1)], [STEP, later])
    assert found is not None and (found.step, found.module) == (1, "layer.q")
    assert "its weights differ by now" in found.text


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.layer.q",
        "base_model.model.layer.q.base_layer",
        "_fsdp_wrapped_module.layer.q",
        "layer._checkpoint_wrapped_module.q",
    ],
)
def test_names_that_wrappers_add_do_not_count(name: str) -> None:
    other = changed(layer_q=call(name, numbers(1.0), numbers(2.5)))
    found = first_departure([STEP], [other])
    assert found is not None and found.module == "layer.q"


def test_the_second_call_of_a_module_is_compared_with_the_second() -> None:
    twice = replace(STEP, modules=(EMBED, QUERY, QUERY))
    other = replace(twice, modules=(EMBED, QUERY, replace(QUERY, output=numbers(9.0))))
    found = first_departure([twice], [other])
    assert found is not None and found.module == "layer.q"


def test_what_is_written_is_read_also_where_json_has_no_such_number(tmp_path: Path) -> None:
    broken = replace(STEP, loss=math.inf, gradients={"embed": math.nan})
    write_fingerprints(tmp_path, [STEP, broken], ["gradients: none"])
    first, second = read_fingerprints(tmp_path)
    assert first == STEP
    assert second.loss == math.inf and math.isnan(second.gradients["embed"])
    assert first_departure([second], [second]) is None


def test_a_run_without_the_file_has_recorded_nothing(tmp_path: Path) -> None:
    assert read_fingerprints(tmp_path) == ()


def test_other_samples_are_not_compared(tmp_path: Path) -> None:
    write_fingerprints(tmp_path, [STEP])
    written = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(written.replace(f'"samples": {SAMPLES}', f'"samples": {4 * SAMPLES}'))
    assert read_fingerprints(tmp_path) == ()


@pytest.mark.parametrize("text", ["{", "[]", '{"steps": [{"step": 0}]}', '{"steps": 3}'])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=rf"{FILE}: cannot be read .*; correct or remove the file"):
        read_fingerprints(tmp_path)
