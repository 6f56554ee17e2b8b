"""How far a preparation is; `inrun.progress.live_line` shows it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Counts so far, and the tokens and seconds of this run alone (a resumed preparation starts
    them at 0).
    """

    documents: int
    tokens: int
    chunks: int
    run_tokens: int
    run_seconds: float

    def __str__(self) -> str:
        rate = self.run_tokens / max(self.run_seconds, 1e-9)
        return (
            f"{self.documents:,} documents, {self.tokens / 1e6:,.2f} M tokens, "
            f"{self.chunks:,} chunks, "
            f"{rate / 1e6:.2f} M tokens/s"
        )
