"""What became of every row and token: nothing vanishes uncounted."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum

from fmstune.data.tokens import IGNORED, Encoded


class Fate(Enum):
    """What becomes of a row that was tokenised."""

    trained = "trained"
    truncated = "truncated"
    too_long = "too_long"
    without_answer = "without_answer"


@dataclass
class Ledger:
    """What became of every row and token of one split: each row that was read is trained or dropped."""

    rows_read: int = 0
    rows_formatted: int = 0
    """Made into segments: all but those without template."""
    rows_with_several_templates: int = 0
    """The last template counts, and the others are taken for part of the prompt."""
    rows_without_template: int = 0
    """Dropped."""
    rows_without_answer: int = 0
    """Dropped: the answer is blank or cut away, and only end-of-sequence would be trained."""
    rows_too_long: int = 0
    """Dropped for their length."""
    rows_held_out_too: int = 0
    """Dropped because a held-out row has the same tokens."""
    rows_trained: int = 0
    rows_truncated: int = 0
    """Trained without their end."""
    tokens_total: int = 0
    """Tokens of the trained rows, after cutting."""
    tokens_trained: int = 0
    tokens_cut: int = 0
    """Tokens that the truncated rows lost."""
    tokens_straddling: int = 0
    """Tokens on both sides of a boundary between read and trained text."""
    longest: int = 0
    """Tokens of the longest row before cutting."""
    longest_row: int = 0
    """Which one that is, counted from 1 through the split."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Rows by their number of tokens before cutting, also those that were dropped after that."""

    @property
    def rows_dropped(self) -> int:
        """Rows that were read and are not trained."""
        return self.rows_without_template + self.rows_without_answer + self.rows_too_long + self.rows_held_out_too

    @property
    def tokens_masked(self) -> int:
        """Tokens that are read and not trained."""
        return self.tokens_total - self.tokens_trained

    @classmethod
    def total(cls, ledgers: Sequence["Ledger"]) -> "Ledger":
        """The sum of several; `longest_row` is that of the ledger with the longest row."""
        counted = [one.name for one in fields(cls) if one.name not in ("lengths", "longest", "longest_row")]
        found = cls(**{name: sum(getattr(ledger, name) for ledger in ledgers) for name in counted})
        for ledger in ledgers:
            if ledger.longest > found.longest:
                found.longest, found.longest_row = ledger.longest, ledger.longest_row
            for length, count in ledger.lengths.items():
                found.lengths[length] = found.lengths.get(length, 0) + count
        return found

    def without(self, labels: Collection[Sequence[int]]) -> "Ledger":
        """The ledger after rows with these labels were found among the held-out ones and dropped."""
        trained = sum(label != IGNORED for row in labels for label in row)
        return replace(
            self,
            rows_trained=self.rows_trained - len(labels),
            rows_held_out_too=self.rows_held_out_too + len(labels),
            tokens_total=self.tokens_total - sum(map(len, labels)),
            tokens_trained=self.tokens_trained - trained,
        )

    def add(self, encoded: Encoded, fate: Fate, number: int) -> None:
        """Count a row that was tokenised, the split's `number`-th."""
        if encoded.length > self.longest:
            self.longest, self.longest_row = encoded.length, number
        self.lengths[encoded.length] = self.lengths.get(encoded.length, 0) + 1
        self.rows_too_long += fate is Fate.too_long
        self.rows_without_answer += fate is Fate.without_answer
        if fate in (Fate.trained, Fate.truncated):
            self.rows_trained += 1
            self.rows_truncated += fate is Fate.truncated
            self.tokens_total += len(encoded.input_ids)
            self.tokens_trained += encoded.trained
            self.tokens_cut += encoded.length - len(encoded.input_ids)
            self.tokens_straddling += encoded.straddling

    def lines(self) -> list[str]:
        """The ledger as it is printed."""
        share = self.tokens_trained / max(1, self.tokens_total)
        return [
            f"rows    {self.rows_read:,} = {self.rows_trained:,} trained + {self.rows_dropped:,} dropped",
            f"        formatted: {self.rows_formatted:,} of {self.rows_read:,}",
            f"        dropped: {self.rows_without_template:,} without template, "
            f"{self.rows_without_answer:,} without answer, {self.rows_too_long:,} too long"
            + (f", {self.rows_held_out_too:,} held out, too" if self.rows_held_out_too else ""),
            f"        trained: {self.rows_truncated:,} without their end, "
            f"{self.rows_with_several_templates:,} from the last of several templates on",
            f"tokens  {self.tokens_total:,} = {self.tokens_trained:,} trained ({share:.1%}) "
            f"+ {self.tokens_masked:,} masked",
            f"        {self.tokens_cut:,} cut off, {self.tokens_straddling:,} straddling a boundary",
            f"length  {self.longest:,} tokens in row {self.longest_row:,}, the longest",
        ]
