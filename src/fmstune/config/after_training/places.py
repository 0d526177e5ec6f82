"""What requests about a model share: its place, its base, what it may import, and how it is loaded."""

from dataclasses import dataclass
from typing import Annotated

from fmstune.config.choices import Attention, Device, Dtype
from fmstune.config.flags import As

Place = Annotated[str, As("PLACE")]
File = Annotated[str, As("FILE")]
Folder = Annotated[str, As("DIR")]


@dataclass(frozen=True, kw_only=True)
class Trusting:
    """A request that may name packages of the user."""

    trusted: Annotated[tuple[str, ...], As("PACKAGE", ("--trust",))] = ()
    """Allow a format, tracker or callback from your own package; repeatable."""


@dataclass(frozen=True, kw_only=True)
class OnBase:
    """A request about a model that may be an adapter."""

    base_model_name_or_path: Place | None = None
    """The base model, if it has moved since training."""
    force: bool = False
    """Use an adapter also with a base other than the one it was tuned on."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A request that loads a model."""

    dtype: Dtype = Dtype.auto
    """As model.dtype."""
    attention: Annotated[Attention, As("auto|sdpa|eager|flash_attention_2")] = Attention.auto
    """As model.attention."""
    device: Device = Device.auto
    """As launcher.device."""


@dataclass(frozen=True, kw_only=True)
class Asking(Loading, OnBase, Trusting):
    """A request that asks one model many questions."""

    model: Place
    """A run folder, an adapter or model folder, or a hub id."""
    batch_size: int = 8
    """Sequences that go through the model together."""
    seed: int = 42
    """Seed of random draws."""
