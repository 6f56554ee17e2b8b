"""How far a preparation is; `inrun.progress.live_line` shows it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Counts so far."""

    documents: int
    "Read."
    tokens: int
    "Written."
    chunks: int
    "Written."
    run_tokens: int
    "Of this run alone: a resumed preparation begins at 0."
    run_seconds: float
    "Of this run alone."

    def __str__(self) -> str:
        rate = self.run_tokens / max(self.run_seconds, 1e-9)
        return (
            f"{self.documents:,} documents, {self.tokens / 1e6:,.2f} M tokens, {self.chunks:,} "
            f"chunks, {rate / 1e6:.2f} M tokens/s"
        )
