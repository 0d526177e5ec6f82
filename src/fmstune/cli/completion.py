"""Tab completion beyond Hydra's: verbs, and the fields that no YAML lists."""

import re
from contextlib import suppress

from fmstune.config import named_classes, upstream_fields
from fmstune.config.flags import spellings
from fmstune.config.groups import group_names
from fmstune.config.overrides import allow_new_fields, parse_overrides, text_of
from fmstune.config.renamed_fields import OWNED
from fmstune.config.requests import Harness, Verb
from fmstune.errors import UserError


def suggestions(line: str) -> list[str]:
    """Return the words that can complete this command line, in addition to the words that Hydra suggests."""
    words = line.split()
    last = "" if line.endswith(" ") else words[-1]
    verbs = [verb.value for verb in Verb]
    if len(words) - (last != "") == 1:
        return [verb for verb in verbs if verb.startswith(last)]
    if last.startswith("-"):
        verb = Verb(words[1]) if words[1] in verbs else Verb.train
        kind = Harness if words[1:3] == ["evaluate", "harness"] else verb.options
        return [flag for flag in spellings(kind) if flag.startswith(last)]
    if last.startswith("training.") and "=" not in last:
        group, target = "training", upstream_fields.SFT_CONFIG
    elif match := re.match(r"(tracking\.(\w+))\.\w*$", last):
        group, target = match[1], named_classes.shipped_trackers().get(match[2], "")
    else:
        return []
    owned = {f"training.{name}=" for name in OWNED}
    names = [f"{group}.{name}=" for name in (upstream_fields.fields_of(target) if target else ())]
    return [name for name in names if name.startswith(last) and name not in owned]


def line_for_hydra(line: str) -> str:
    """The line without the verb, and with overrides that Hydra can compose."""
    app, _, rest = line.partition(" ")
    words = rest.split()
    if words and words[0] in [*Verb] and (len(words) > 1 or line.endswith(" ")):
        del words[0]
    done = words if line.endswith(" ") else words[:-1]
    last = [] if line.endswith(" ") else words[-1:]
    with suppress(UserError):  # flags, or a word in quotes that spaces divide, stay as they are
        done = [text_of(one) for one in allow_new_fields(parse_overrides(done), group_names())]
    return " ".join([app, *done, *last]) + (" " if line.endswith(" ") else "")
