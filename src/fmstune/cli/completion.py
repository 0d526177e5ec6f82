"""Tab completion beyond Hydra's: verbs, and the fields that no YAML lists."""

import re
from collections.abc import Container
from dataclasses import fields

from fmstune.cli.arguments import force_plain_overrides
from fmstune.config import named_classes, upstream_fields
from fmstune.config.renamed_fields import OWNED
from fmstune.config.requests import Comparison, Generation, Harness, Merge, Report, Scoring
from fmstune.config.verbs import Verb

_MADE = ("folder", "a", "b", "job", "trusted", "run_base", "run_base_revision")
"""Fields of a request that are no flags of its verb."""


def suggestions(line: str) -> list[str]:
    """What could stand at the end of this command line, besides what Hydra suggests."""
    words = line.split()
    last = "" if line.endswith(" ") else words[-1]
    if len(words) - (last != "") == 1:
        return [verb.value for verb in Verb if verb.value.startswith(last)]
    kinds = type[Generation] | type[Merge] | type[Scoring] | type[Harness] | type[Report] | type[Comparison]
    requests: dict[str, kinds] = {
        Verb.generate.value: Generation,
        Verb.merge.value: Merge,
        Verb.evaluate.value: Harness if "harness" in words[2:3] else Scoring,
        Verb.report.value: Report,
        Verb.compare.value: Comparison,
    }
    if words[1] in requests and last.startswith("-"):
        flags = [f"--{field.name}" for field in fields(requests[words[1]]) if field.name not in _MADE]
        return [flag for flag in flags if flag.startswith(last)]
    if words[1] == Verb.from_fms.value:
        return ["--run"] if last.startswith("-") and "--run".startswith(last) else []
    if last.startswith("training.") and "=" not in last:
        names = [
            f"training.{name}=" for name in upstream_fields.fields_of(upstream_fields.SFT_CONFIG) if name not in OWNED
        ]
        return [name for name in names if name.startswith(last)]
    if match := re.match(r"tracking\.(\w+)\.\w*$", last):
        target = named_classes.shipped_tracker(match[1])
        names = [f"tracking.{match[1]}.{name}=" for name in (upstream_fields.fields_of(target) if target else ())]
        return [name for name in names if name.startswith(last)]
    return []


def for_hydra(line: str, groups: Container[str]) -> str:
    """The line without the verb, and with overrides that Hydra can compose."""
    app, _, rest = line.partition(" ")
    words = rest.split()
    if words and words[0] in {verb.value for verb in Verb} and (len(words) > 1 or line.endswith(" ")):
        del words[0]
    done = words if line.endswith(" ") else words[:-1]
    last = [] if line.endswith(" ") else words[-1:]
    return " ".join([app, *force_plain_overrides(done, groups), *last]) + (" " if line.endswith(" ") else "")
