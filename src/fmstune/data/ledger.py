"""The count of every row and token of a split: trained, dropped or masked."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace

from fmstune.data.tokens import IGNORED, Encoded
from fmstune.tables import count_of


@dataclass
class Ledger:
    """The rows and tokens of one split; each row that was read is trained or dropped."""

    rows_read: int = 0
    rows_split: int = 0
    """Conversations that were split into several rows, as their template rewrites earlier turns."""
    rows_added: int = 0
    """Rows that these have more than they were read as."""
    rows_formatted: int = 0
    """Made into segments: all rows that have the template."""
    rows_with_several_templates: int = 0
    """The last template counts; the others are part of the prompt."""
    rows_without_template: int = 0
    """Dropped."""
    rows_without_answer: int = 0
    """Dropped: the answer is blank or cut away, and only end-of-sequence would be trained."""
    rows_too_long: int = 0
    """Dropped for their length."""
    rows_held_out_too: int = 0
    """Dropped because a held-out row has the same tokens."""
    rows_quarantined: int = 0
    """Dropped because `data.quarantine` names them."""
    rows_trained: int = 0
    rows_truncated: int = 0
    """Trained, with their end cut off."""
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
    """Its number in the source, from 1."""
    lengths: dict[int, int] = field(default_factory=dict)
    """Rows by their number of tokens before cutting, those included that were then dropped."""

    @property
    def rows_dropped(self) -> int:
        """Rows that were read and are not trained."""
        dropped = self.rows_without_template + self.rows_without_answer + self.rows_too_long + self.rows_held_out_too
        return dropped + self.rows_quarantined

    @property
    def tokens_masked(self) -> int:
        """Tokens that are read and not trained."""
        return self.tokens_total - self.tokens_trained

    @classmethod
    def total(cls, ledgers: Sequence["Ledger"]) -> "Ledger":
        """The sum of several; `longest_row` comes from the ledger with the longest row."""
        counted = [one.name for one in fields(cls) if one.name not in ("lengths", "longest", "longest_row")]
        sums = {name: sum(getattr(ledger, name) for ledger in ledgers) for name in counted}
        top = max(ledgers, key=lambda ledger: ledger.longest)
        lengths = dict(sum((Counter(ledger.lengths) for ledger in ledgers), Counter[int]()))
        return cls(**sums, longest=top.longest, longest_row=top.longest_row, lengths=lengths)

    def without(self, labels: Collection[Sequence[int]]) -> "Ledger":
        """The ledger after rows with these labels were found among the held-out ones and dropped."""
        return replace(
            self,
            rows_trained=self.rows_trained - len(labels),
            rows_held_out_too=self.rows_held_out_too + len(labels),
            tokens_total=self.tokens_total - sum(map(len, labels)),
            tokens_trained=self.tokens_trained - sum(label != IGNORED for row in labels for label in row),
        )

    def add_length(self, length: int, number: int) -> None:
        """Count the tokens of a row, the source's `number`-th, before it is cut or dropped."""
        if length > self.longest:
            self.longest, self.longest_row = length, number
        self.lengths[length] = self.lengths.get(length, 0) + 1

    def add_trained(self, encoded: Encoded) -> None:
        """Count a row that is trained."""
        tokens = len(encoded.input_ids)
        self.rows_trained += 1
        self.rows_truncated += encoded.length > tokens
        self.tokens_total += tokens
        self.tokens_trained += encoded.trained
        self.tokens_cut += encoded.length - tokens
        self.tokens_straddling += encoded.straddling

    def lines(self) -> list[str]:
        """The ledger as it is printed."""
        share = self.tokens_trained / max(1, self.tokens_total)
        split = count_of(self.rows_split, "conversation")
        added = f" + {self.rows_added:,} by splitting {split}" if self.rows_split else ""
        return [
            f"rows    {self.rows_read:,}{added} = {self.rows_trained:,} trained + {self.rows_dropped:,} dropped",
            f"        formatted: {self.rows_formatted:,} of {self.rows_read:,}",
            f"        dropped: {self.rows_without_template:,} without template, "
            f"{self.rows_without_answer:,} without answer, {self.rows_too_long:,} too long"
            + (f", {self.rows_held_out_too:,} also held out" if self.rows_held_out_too else "")
            + (f", {self.rows_quarantined:,} quarantined" if self.rows_quarantined else ""),
            f"        trained: {self.rows_truncated:,} truncated; "
            f"{self.rows_with_several_templates:,} with more than one response template (the last one counts)",
            f"tokens  {self.tokens_total:,} = {self.tokens_trained:,} trained ({share:.1%}) "
            f"+ {self.tokens_masked:,} masked",
            f"        {self.tokens_cut:,} cut off, {self.tokens_straddling:,} straddling a boundary",
            f"length  {self.longest:,} tokens in row {self.longest_row:,}, the longest",
        ]
