"""What fmstune says to commands of the early tool that cannot be translated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.cases import Case, assert_answered, case, wrong_inputs

pytestmark = pytest.mark.sampled(12)

SCRIPT = "python tuning/sft_trainer.py --training_data_path a.json --dataset_text_field output --response_template A:"


EARLY = [
    case("from-fms", "from-fms needs an old command in single quotes or after --, or a file; - is stdin"),
    case("from-fms --runn x", "from-fms has no flag --runn; did you mean '--run'?; the old command follows after --"),
    case("from-fms 'ls -l'", "no command of the early tool in 'ls -l'; give one that starts tuning/sft_trainer.py, …"),
    case("from-fms '# nothing'", "no command; give one that starts tuning/sft_trainer.py, …"),
    case("from-fms nowhere.sh", "no command of the early tool in 'nowhere.sh'; …, or an existing file"),
    case(
        'from-fms "python tuning/sft_trainer.py --model \'a b"',
        "the quote at 'a b does not end; put the whole command into single quotes, or into a file",
    ),
    case(f"from-fms '{SCRIPT} --learning_rat 1'", "--learning_rat is not a flag of the early tool; did you mean …?"),
    case(f"from-fms '{SCRIPT} --zzz'", "--zzz is not a flag of the early tool (docs/migration.md lists the flags)"),
    case(
        f"from-fms '{SCRIPT} --deepspeed x --tpu_num_cores 8 --packing maybe --peft_method qlora'",
        "--peft_method must be one of lora, pt, none; got 'qlora'",
        "--deepspeed: use FSDP instead: launcher=fsdp",
        "--tpu_num_cores: fmstune does not train on TPUs",
        "--packing must be True or False, got 'maybe'",
    ),
    case(
        "from-fms 'python tuning/sft_trainer.py --output_dir out'",
        "--dataset_text_field is missing, and the early tool required it: the column that holds the text",
        "--response_template is missing, …",
        "--training_data_path is missing, …",
    ),
    case(
        f"from-fms 'accelerate launch --config_file $NOPE/a.yaml {SCRIPT.removeprefix('python ')} --packing $NOPE'",
        "--packing must be True or False, got '$NOPE'",
        "--config_file $NOPE/a.yaml cannot be read; …",
    ),
    case(f"from-fms '{SCRIPT} --learning_rate'", "--learning_rate takes one value, got none"),
    case(f"from-fms '{SCRIPT} $(date)'", "$(date): only a shell can run this; write its result"),
    case("from-fms job.json", "the job: broken JSON (…)", job_json='{"output_dir": '),
    case("from-fms job.json", "job.json is not text (invalid start byte); …", job_json=b"\xff"),
    case(
        f"from-fms 'accelerate launch --config_file nowhere.yaml {SCRIPT.removeprefix('python ')}'",
        "--config_file nowhere.yaml cannot be read; give the path of this file, which sets the launcher",
    ),
    case(
        f"from-fms 'accelerate launch --num_process 2 {SCRIPT.removeprefix('python ')}'",
        "--num_process is not a flag of the early tool; did you mean '--num_processes'?",
    ),
    case(
        f"from-fms 'torchrun --nproc_per_node --nnodes 1 {SCRIPT.removeprefix('python ')}'",
        "--nproc_per_node takes one value, got none",
    ),
    case(
        f"from-fms '{SCRIPT} --fsdp no_shard'",
        "--fsdp no_shard is not supported; choose from full_shard, shard_grad_op, …",
    ),
    case(f"from-fms --run '{SCRIPT} --output_dir $OUT'", "$OUT has no value; set it before the command"),
    case("from-fms 'python scripts/run_inference.py --text x'", "--model is missing: the tuned model's folder"),
    case(
        "from-fms 'python scripts/run_inference.py --model x'", "one of --text and --text_file must be given, got none"
    ),
    case("from-fms 'lm_eval --tasks boolq'", "--model_args is missing: the model, as pretrained=DIR"),
    case(
        "from-fms 'python accelerate_launch.py'",
        "SFT_TRAINER_CONFIG_JSON_PATH or SFT_TRAINER_CONFIG_JSON_ENV_VAR must name the container's job; …",
    ),
]

CASES = EARLY


@wrong_inputs(CASES)
def test_a_wrong_early_command_is_answered_by_one_message_and_leaves_nothing(
    wrong: Case, fmstune: Callable[..., Any], tmp_path: Path
) -> None:
    assert_answered(wrong, fmstune, tmp_path)
