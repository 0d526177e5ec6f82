"""The verbs of the command, what each does, and the flags that belong to one of them."""

from enum import Enum


class Verb(Enum):
    """What to do with the composed job."""

    train = "train"
    reproduce = "reproduce"
    check = "check"
    show_data = "show-data"
    modules = "modules"
    generate = "generate"
    evaluate = "evaluate"
    merge = "merge"
    from_fms = "from-fms"
    report = "report"
    compare = "compare"
    doctor = "doctor"


SUMMARIES = {
    Verb.train: "compose, check, tune, compare with the base (the default)",
    Verb.reproduce: "check what a run has recorded, run it again, and compare the results",
    Verb.check: "validate everything and print the plan; reads no weight",
    Verb.show_data: "show rows with trained and masked tokens apart",
    Verb.modules: "list what an adapter can target in the model",
    Verb.generate: "let a tuned model continue texts, or answer rows",
    Verb.evaluate: "compare a tuned model with its base on labelled rows, or on tasks of a harness",
    Verb.merge: "put adapters into the weights of their base",
    Verb.from_fms: "translate a command or job file of the early tool, fms-hf-tuning",
    Verb.report: "write a page, a text and a table about a run or a sweep",
    Verb.compare: "show how two runs differ: settings, data, versions, results",
    Verb.doctor: "show versions, devices, extras and the cache",
}

FLAG_OF = {
    "--from": Verb.train,
    "--strict": Verb.reproduce,
    "--resume": Verb.train,
    "--sources": Verb.check,
    "--json": Verb.show_data,
    "--html": Verb.show_data,
    "--rows": Verb.show_data,
    "--clear-cache": Verb.doctor,
}
"""Whose flag it is, to say so when another verb gets it."""
