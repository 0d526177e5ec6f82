"""`training.learning_rate=auto`: the job before and after a rate is chosen, and the file that keeps the choice."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmstune.config.choices import Auto
from fmstune.config.job import Job
from fmstune.config.renamed_fields import USUAL_RATE
from fmstune.files import write_json
from fmstune.runs import run_folder

_FIELD = "learning_rate"


@dataclass(frozen=True)
class Probe:
    """A short run at one rate."""

    rate: float
    steps: int
    loss: float | None
    """Held-out loss at its end, in nats a token; None where the training broke."""
    seconds: float


@dataclass(frozen=True)
class RateChoice:
    """The rate of a run, and how it was chosen."""

    rate: float
    low: float
    high: float
    """The interval of the best rate: what other held-out rows, and another power of the steps, would have chosen."""
    usual: float
    """The rate that the job would have had, around which the probes looked."""
    total_steps: int
    """Steps of the run."""
    exponent: float
    """The best rate is taken to fall with this power of the steps."""
    probes: tuple[Probe, ...]

    def line(self) -> str:
        """The rate, its interval and its probes in one line."""
        counts = {one.steps: sum(other.steps == one.steps for other in self.probes) for one in self.probes}
        taken = " and ".join(f"{count} probes of {steps:,} steps" for steps, count in counts.items())
        return f"learning_rate {self.rate:.2g} ({self.low:.2g} to {self.high:.2g}), chosen by {taken}"


def is_rate_open(job: Job) -> bool:
    """Whether probes are to choose the learning rate of this job."""
    return bool(job.training.get(_FIELD) == Auto.auto.value)


def with_rate(job: Job, rate: float) -> Job:
    """The job with this learning rate."""
    training = {key: value for key, value in {**job.training, _FIELD: rate}.items() if key != USUAL_RATE}
    return dataclasses.replace(job, training=training)


def with_usual_rate(job: Job) -> Job:
    """The job with the rate around which probes would look, where its rate is open."""
    return with_rate(job, job.training[USUAL_RATE]) if is_rate_open(job) else job


def with_chosen_rate(job: Job, folder: Path) -> Job:
    """The job with the rate that probes have chosen for the run in this folder, where its rate is open and one was."""
    chosen = read_choice(folder) if is_rate_open(job) else {}
    return with_rate(job, float(chosen["rate"])) if chosen else job


def write_choice(folder: Path, choice: RateChoice) -> None:
    """Write the choice into the run folder."""
    write_json(folder / run_folder.LEARNING_RATE, dataclasses.asdict(choice))


def read_choice(folder: Path) -> Mapping[str, Any]:
    """Read the fields of the choice; empty where none was made. Raises UserError for a damaged file."""
    return run_folder.read_own(folder / run_folder.LEARNING_RATE)
