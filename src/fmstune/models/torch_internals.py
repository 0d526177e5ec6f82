"""The private name of torch that lists the modes of torch.compile."""

from fmstune.upstream import explain_missing_names

with explain_missing_names("torch"):
    from torch._inductor import list_mode_options as list_mode_options
