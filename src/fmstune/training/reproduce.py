"""`fmstune reproduce` in the runner: the facts of now against the recorded ones, and weights against weights."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fmstune.config import freeze
from fmstune.config.job import Job, text_columns
from fmstune.data.dataset import data_identity
from fmstune.errors import Problem, UserError, collect_problems
from fmstune.launch import subprocesses
from fmstune.models import load
from fmstune.runs import differences, lockfile, run_folder
from fmstune.training import preflight


def compare_facts(job: Job, recorded: Path, *, strict: bool, trusted: Sequence[str]) -> int:
    """List what is not as the run in this folder had it; `strict` refuses where that can change the result."""
    lock = differences.read_lock(recorded)
    former = freeze.read(recorded / run_folder.JOB, trusted=trusted).job
    now, problems = facts(job)
    changed = differences.job_differences(freeze.as_tree(former), freeze.as_tree(job))
    found = sorted([*changed, *differences.lock_differences(lock, now)], key=lambda one: not one.counts)
    counted = [one.fact for one in found if one.counts]
    print()
    if found:
        print("\n".join([*differences.render_differences(found), ""]))
    print(f"{len(counted)} of the facts that can change the result differ from {recorded / run_folder.PROVENANCE}")
    print("\n".join(f"cannot be checked: {problem}" for problem in problems), end="\n" if problems else "", flush=True)
    if strict and (counted or problems):
        differ = Problem("--strict", f": not as recorded: {', '.join(counted)}; restore it, or leave --strict out")
        raise UserError.of([*([differ] if counted else []), *problems])
    return 0


def facts(job: Job) -> tuple[dict[str, Any], list[Problem]]:
    """Return what `lock.json` would hold for this job, and the problems that keep the rest from being known."""
    problems: list[Problem] = []
    device, config, tokenizer, read = job.launcher.device.value, "", None, {}
    with collect_problems(problems):
        checked = preflight.check_job(job)
        device, config = checked.device, checked.configuration.to_json_string(use_diff=False)
        tokenizer = load.load_tokenizer(job.model)
        config = preflight.with_tokenizer(job, checked, tokenizer).configuration.to_json_string(use_diff=False)
    with collect_problems(problems, new_fields=True):
        read = data_identity(job.data, tokenizer and tokenizer.tokenizer, job.seed, text_columns(job.objective))
    known = {"data_hashes": {}, "tokens": {}, **read, "data_rows": {}}
    found = asdict(lockfile.collect_lock(job, device=device, model_config=config, command=None, data=known))
    found["processes"] = subprocesses.total_processes(job.launcher) or found["processes"]
    found["model_files"] = lockfile.model_files(job.model)
    if tokenizer is None:
        del found["tokens"]
    return found, problems


def compare_weights(recorded: Path, again: Path) -> int:
    """Say by how much the weights of two runs differ."""
    print("\n".join(differing(recorded / run_folder.MODEL, again / run_folder.MODEL)))
    return 0


def differing(one: Path, other: Path) -> Iterator[str]:
    """By how much the tensors in two folders differ, a pair at a time in memory."""
    first_files, second_files = _files_of_tensors(one), _files_of_tensors(other)
    if not (first_files and second_files):
        yield f"weights: not bit for bit equal; {other if first_files else one} holds none to compare"
        return
    if alone := first_files.keys() ^ second_files.keys():
        yield f"weights: {len(alone)} tensors are in one of the two only, such as {min(alone)}"
    largest, where, different, squares, size = 0.0, "", 0, 0.0, 0.0
    shared = sorted(first_files.keys() & second_files.keys())
    for name in shared:
        first, second = (_read_tensor(files[name], name) for files in (first_files, second_files))
        if first.shape != second.shape:
            yield f"weights: {name} has the shape {list(second.shape)} and not {list(first.shape)}"
            continue
        change = (first - second).abs()
        different += not torch.equal(first, second)
        squares, size = squares + change.square().sum().item(), size + first.square().sum().item()
        if change.numel() and (most := change.max().item()) > largest:
            largest, where = most, name
    if different:
        share = (squares / size) ** 0.5 if size else float("inf")
        by = f"by up to {largest:.2e} ({where}), by {share:.1e} of their size (root mean square)"
        yield f"weights: {different} of {len(shared)} tensors differ, {by}"
    elif not alone:
        yield "weights: the same numbers in other bytes"


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            found |= dict.fromkeys(content.keys(), file)
    return found


def _read_tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as content:
        tensor: torch.Tensor = content.get_tensor(name)
    return tensor.double()
