# SPDX-License-Identifier: Apache-2.0
"""Manifests for clusters fit their makers' schemas, and run commands that torchrun and the runner take."""

import copy
import json
import re
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from torch.distributed.run import get_args_parser

from fmstune import runner
from fmstune.config import freeze
from fmstune.launch import subprocesses
from tests import ROOT
from tests.conftest import Result
from tests.project.test_docs import blocks

PAGE = ROOT / "docs" / "clusters.md"
PLACE = ROOT / "examples" / "clusters"
SCHEMAS = Path(__file__).parent / "schemas"
MANIFESTS = ("pytorchjob.yaml", "rayjob.yaml", "skypilot.yaml", "trainjob.yaml")
NOT_RUN = "Checked against its schema; not run by us."
SHELL = {
    "$SKYPILOT_NUM_NODES": "2",
    "$SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "$SKYPILOT_NODE_RANK": "1",
    '$(echo "$SKYPILOT_NODE_IPS" | head -n1)': "10.0.0.1",
}
"""What the shell makes of the words of a manifest's commands."""
JOB_FILES = ("/runs/first/job.yaml", "job.yaml")


def manifest(name: str) -> Any:
    return yaml.safe_load((PLACE / name).read_text())


def problems(name: str, value: Any) -> list[str]:
    """What the schema of a manifest says against a value."""
    schema = json.loads((SCHEMAS / name).with_suffix(".json").read_text())
    kubernetes = json.loads((SCHEMAS / "kubernetes.json").read_text())
    schema["$defs"] = kubernetes["$defs"] | schema["$defs"]
    jsonschema.Draft202012Validator.check_schema(schema)
    found = jsonschema.Draft202012Validator(schema).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_its_schema(name: str) -> None:
    assert problems(name, manifest(name)) == []


MASTER = "spec.pytorchReplicaSpecs.Master"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs.0"
PATCH = "spec.runtimePatches.0.trainingRuntimeSpec.template.spec.replicatedJobs.0.template.spec.template.spec"


@pytest.mark.sampled(12)
@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("pytorchjob.yaml", "spec.nprocPerNode", 8),
        ("pytorchjob.yaml", f"{MASTER}.restartPolicy", "Sometimes"),
        ("pytorchjob.yaml", f"{MASTER}.template.spec.containers.0.volumeMounts.0.path", "/runs"),
        ("pytorchjob.yaml", f"{MASTER}.template.spec.initContainers.0.command", "sh"),
        ("rayjob.yaml", "spec.entryPoint", "python"),
        ("rayjob.yaml", f"{WORKERS}.replicas", "two"),
        ("rayjob.yaml", f"{WORKERS}.template.spec.volumes.0.persistentVolumeClaim.claim", "runs"),
        ("skypilot.yaml", "nodes", 2),
        ("skypilot.yaml", "resources.use_spot", "often"),
        ("skypilot.yaml", "file_mounts./runs.mode", "CACHED"),
        ("trainjob.yaml", "spec.trainer.numProcPerNode", "eight"),
        ("trainjob.yaml", f"{PATCH}.containers.0.command", ["sh"]),
    ],
)
def test_a_wrong_manifest_is_refused(name: str, place: str, value: Any) -> None:
    changed = copy.deepcopy(manifest(name))
    part = changed
    # a dot is in no key
    *steps, last = place.split(".")
    for step in steps:
        part = part[int(step)] if isinstance(part, list) else part[step]
    part[last] = value
    assert problems(name, changed)


def texts(value: Any) -> Iterator[str]:
    """The commands of a manifest: strings, and lists of words."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(word, str) for word in value):
        # of `sh -c COMMANDS` the commands are what counts
        yield value[2] if value[:2] == ["sh", "-c"] else shlex.join(value)
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


def lines(name: str) -> list[list[str]]:
    """The words of each command in a manifest that starts the runner, as the shell gives them."""
    if name == PAGE.name:
        found = [block.text for block in blocks(PAGE) if block.language == "text"] + indented(PAGE)
    else:
        found = list(texts(manifest(name)))
    return [words for text in found for words in commands(text) if "fmstune.runner" in words]


def indented(path: Path) -> list[str]:
    """Blocks inside a numbered list."""
    return re.findall(r"^    ```text\n(.*?)^    ```$", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    text = text.replace("\\\n", " ")
    for written, value in SHELL.items():
        text = text.replace(written, value)
    for command in re.split(r"[;\n]|&&", text):
        yield shlex.split(command)


def torchrun(words: list[str]) -> tuple[Namespace, Namespace]:
    """What torchrun and the runner make of a command line; argparse exits where they do not take it."""
    options = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert options.module and options.training_script == "fmstune.runner"
    return options, runner._options(options.training_script_args)


@pytest.mark.parametrize("name", [*MANIFESTS, PAGE.name])
def test_the_commands_are_ones_that_torchrun_and_the_runner_take(name: str) -> None:
    found = lines(name)
    prepared = [
        runner._options(words[words.index("fmstune.runner") + 1 :]) for words in found if "torchrun" not in words
    ]
    trained = [torchrun(words)[1] for words in found if "torchrun" in words]
    if name == "rayjob.yaml":
        # its script starts both
        assert found == []
        return
    assert [options.prepare for options in prepared] == [True]
    assert trained and not any(options.prepare for options in trained)
    assert {str(options.job) for options in (*prepared, *trained)} <= set(JOB_FILES)


def test_a_command_that_the_runner_does_not_take_is_seen() -> None:
    with pytest.raises(SystemExit):
        torchrun(shlex.split("torchrun -m fmstune.runner job.yaml --preparing"))
    with pytest.raises(SystemExit):
        torchrun(shlex.split("torchrun --machines=2 -m fmstune.runner job.yaml"))


def test_the_script_for_ray_starts_what_the_others_start() -> None:
    script = (PLACE / "ray_torchrun.py").read_text()
    flags = re.findall(r'"(--[\w-]+)=\{', script.replace('f"', '"'))
    assert set(flags) == {"--nnodes", "--nproc-per-node", "--node-rank", "--master-addr", "--master-port"}
    torchrun(["torchrun", *(f"{flag}=1" for flag in flags), "-m", "fmstune.runner", "job.yaml"])
    assert '"torch.distributed.run"' in script and '"fmstune.runner", options.job, "--prepare"' in script
    taken = re.findall(r'add_argument\("(--\w+)"', script)
    for text in (manifest("rayjob.yaml")["spec"]["entrypoint"], PAGE.read_text()):
        used = re.search(r"ray_torchrun\.py (/\S+)((?: --\w+=\d+)+)", text)
        assert used and used[1] in JOB_FILES
        assert re.findall(r"(--\w+)=", used[2]) == taken


def test_the_job_of_the_page_is_what_the_manifests_start(fmstune: Callable[..., Result], tmp_path: Path) -> None:
    (line,) = [
        line for block in blocks(PAGE) for line in block.text.splitlines() if line.startswith("fmstune --cfg job")
    ]
    words, _, file = line.partition(" > ")
    result = fmstune(*shlex.split(words)[1:])
    assert (result.code, file) == (0, "job.yaml")
    (tmp_path / file).write_text(result.out)
    job = freeze.read(tmp_path / file).job
    assert f"{job.output_dir}/job.yaml" in JOB_FILES
    master, worker = manifest("pytorchjob.yaml")["spec"]["pytorchReplicaSpecs"].values()
    trainer = manifest("trainjob.yaml")["spec"]["trainer"]
    sky = manifest("skypilot.yaml")
    ray = re.findall(r"--(?:nodes|processes)=(\d+)", manifest("rayjob.yaml")["spec"]["entrypoint"])
    sizes = {
        (master["replicas"] + worker["replicas"], int(manifest("pytorchjob.yaml")["spec"]["nprocPerNode"])),
        (trainer["numNodes"], trainer["numProcPerNode"]),
        (sky["num_nodes"], int(sky["resources"]["accelerators"].partition(":")[2])),
        tuple(map(int, ray)),
    }
    assert sizes == {(job.launcher.num_machines, subprocesses.local_processes(job.launcher))}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_and_the_page_say_that_it_was_not_run(name: str) -> None:
    head = (PLACE / name).read_text().splitlines()[:2]
    assert any(line.startswith(f"# {NOT_RUN}") for line in head)
    page = PAGE.read_text()
    assert "We have not run them on a cluster." in page
    assert f"(../examples/clusters/{name})" in page


def test_what_the_manifests_name_is_on_the_page_and_the_other_way_round() -> None:
    names = re.compile(r"\b(?:PET|SKYPILOT|FMSTUNE)_[A-Z_]+[A-Z]\b")
    used = {found for name in MANIFESTS for found in names.findall((PLACE / name).read_text())}
    page = set(names.findall(PAGE.read_text()))
    # set by the operator, and read by torchrun
    flags = ("NNODES", "NPROC_PER_NODE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    read_by_torchrun = {f"PET_{flag}" for flag in flags}
    assert used <= page
    assert page - used <= read_by_torchrun
    options = vars(get_args_parser().parse_args(["x"]))
    assert all(name.removeprefix("PET_").lower() in options for name in read_by_torchrun)
