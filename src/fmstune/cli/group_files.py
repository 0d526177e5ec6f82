"""The verbs recipes, copy and schema: files of groups, for users who write their own."""

import json
import shutil
import sys
from pathlib import Path

from fmstune.cli.arguments import CommandLine
from fmstune.config import groups
from fmstune.config.first_aid import recipes, schema
from fmstune.config.first_aid.verbs import AboutFiles, Copy, Recipes, WriteSchema
from fmstune.files import explain_write_errors, user_path, write_aside


def answer_about_files(line: CommandLine, asked: AboutFiles) -> int:
    """Do what the verb says; the exit code."""
    match asked:
        case Recipes(group=group):
            return _show_recipes(group, line.config_dir)
        case Copy(choice=choice, folder=folder):
            return _copy(choice, user_path(folder), line.config_dir)
        case WriteSchema(group=chosen, out_file=file):
            return _write_schema(chosen, file)


def _show_recipes(group: str, extra: Path | None) -> int:
    groups.raise_if_no_group("recipes", group)
    found = recipes.list_recipes(group, extra)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    longest = max((len(one.name) for one in found), default=0)
    for one in found:
        own = f" ({one.place})" if one.place else ""
        shown = f"{one.name:<{longest}}  {one.about}{own}".rstrip()
        print(shown if len(shown) <= width else f"{shown[: width - 1]}…")
    return 0


def _copy(choice: str, folder: Path, extra: Path | None) -> int:
    made = recipes.copy_choice(choice, folder, extra)
    group, name = made[0].parent.name, made[0].stem
    print("\n".join(f"wrote {path}" for path in made))
    print(f"change it, then: fmstune --config-dir {folder} {group}={name}")
    return 0


def _write_schema(group: str | None, file: str | None) -> int:
    made = schema.job_schema() if group is None else schema.group_schema(group)
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    if file is None:
        print(text, end="")
        return 0
    path = Path(file)
    with explain_write_errors("--out_file", path), write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return 0
