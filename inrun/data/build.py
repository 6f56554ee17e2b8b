"""One preparation, from documents to a finished folder. `prepare.py` says what it does; here is
how.
"""

import hashlib
import itertools
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inrun.data.account import account
from inrun.data.config import SOURCES, SPLITS, DataConfig, split_of
from inrun.data.corpus import FORMAT
from inrun.data.documents import UNLABELLED, Document, utf8_length
from inrun.data.encode import batches, encode, unusable
from inrun.data.errors import DataError, TokenizerMismatch
from inrun.data.noise import make_noise
from inrun.data.packing import STATE_FILE, SplitWriter, token_dtype
from inrun.data.progress import Progress
from inrun.data.tokenizers import load_tokenizer
from inrun.files import read_json, sync, write_bytes, write_json

STATE_FORMAT = 2
DOMAINS_SHOWN = 10


class Build:
    """One preparation: the writers of the three splits and the counts, all of which a saved state
    can restore.
    """

    def __init__(
        self,
        config: DataConfig,
        settings: dict,
        digest: str,
        folder: Path,
        cache: Path,
        report: Callable,
    ):
        self.config, self.settings, self.digest, self.folder, self.report = (
            config,
            settings,
            digest,
            folder,
            report,
        )
        self.cache = cache
        self.partial = folder.with_name(folder.name + ".partial")
        self.counts = dict.fromkeys(
            ("documents", "used", "unlabelled", "tokens", "bytes", "noise_documents"), 0
        )
        self.skipped: dict[str, int] = {"empty": 0, "one_token": 0, "invalid_utf8": 0}
        self.domains_met: dict[str, int] = {}  # domain -> documents, those that are left out too
        self.stopped = False
        self.threads = config.threads or os.cpu_count() or 1

    def run(self) -> None:
        config = self.config
        self.tokenizer = load_tokenizer(config.tokenizer, self.cache, config.tokenizer_from)
        self._start()
        began, tokens_before = time.perf_counter(), self.counts["tokens"]
        documents = itertools.islice(
            SOURCES[config.source].documents(config, self.cache), self.counts["documents"], None
        )
        saved_shards = self._shards()
        for batch in batches(documents):
            self._add(batch)
            self.report(
                Progress(
                    self.counts["documents"],
                    self.counts["tokens"],
                    sum(writer.rows for writer in self.writers.values()),
                    self.counts["tokens"] - tokens_before,
                    time.perf_counter() - began,
                )
            )
            if config.max_tokens and self.counts["tokens"] >= config.max_tokens:
                self.stopped = True
                break
            if self._shards() > saved_shards:
                self._save()
                saved_shards = self._shards()
        self._finish()

    def _start(self) -> None:
        """Go on from a saved state if there is one of these settings; else begin anew."""
        state = {}
        if (self.partial / STATE_FILE).is_file():
            state = read_json(self.partial / STATE_FILE)
        if (state.get("digest"), state.get("format")) != (self.digest, STATE_FORMAT):
            shutil.rmtree(self.partial, ignore_errors=True)
            state = {}
        dtype = token_dtype(self.tokenizer.n_vocab)
        self.writers = {
            split: SplitWriter(
                self.partial / split, self.config.block_size + 1, self.config.shard_tokens, dtype
            )
            for split in SPLITS
        }
        if not state:
            return
        if state["tokenizer_sha256"] != self.tokenizer.sha256:
            raise TokenizerMismatch(
                f"{self.partial} was begun with another file of tokenizer "
                f"{self.tokenizer.name}. Next: delete that folder"
            )
        self.counts, self.skipped = state["counts"], state["skipped"]
        self.domains_met = state["domains_met"]
        for split, writer in self.writers.items():
            writer.restore(state["splits"][split])

    def _save(self) -> None:
        state = {
            "format": STATE_FORMAT,
            "digest": self.digest,
            "tokenizer_sha256": self.tokenizer.sha256,
            "counts": self.counts,
            "skipped": self.skipped,
            "domains_met": self.domains_met,
            "splits": {split: writer.save() for split, writer in self.writers.items()},
        }
        write_json(self.partial / STATE_FILE, state, indent=1)

    def _shards(self) -> int:
        return sum(len(writer.files) for writer in self.writers.values())

    def _add(self, batch: list[Document]) -> None:
        self.counts["documents"] += len(batch)
        usable = []
        for document in batch:
            if document.skip != "invalid_utf8" and document.skip != "null":
                met = self.domains_met
                met[document.domain] = met.get(document.domain, 0) + 1
            reason = document.skip or unusable(document.text)
            if reason:
                self._skip(reason)
            else:
                usable.append(document)
        clean: dict[
            tuple[str, str], list[str]
        ] = {}  # train texts of this batch by domain, to make noise of
        for document, ids in zip(usable, encode(self.tokenizer, usable, self.threads), strict=True):
            if ids is None or len(ids) <= 1:
                self._skip("not_tokenisable" if ids is None else "one_token")
                continue
            split = split_of(document.doc_id, self.config)
            self._pack(split, ids, document)
            self.counts["used"] += 1
            self.counts["unlabelled"] += document.domain == UNLABELLED
            self.counts["bytes"] += utf8_length(document.text)
            if split == "train" and document.kind == "clean":
                clean.setdefault((document.domain, document.pile_like), []).append(document.text)
        if self.config.noise:
            for (domain, pile_like), texts in clean.items():
                self._add_noise(domain, pile_like, texts)

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def _pack(self, split: str, ids: list[int], document: Document, *, made: bool = False) -> None:
        tokens = np.array([*ids, self.tokenizer.eot])
        self.counts["tokens"] += len(tokens)
        self.writers[split].add(tokens, document, made=made)

    def _add_noise(self, domain: str, pile_like: str, texts: list[str]) -> None:
        """Noise chunks until they are `noise` of the domain's train chunks (kinds in the file's own
        are not counted).
        """
        writer, kinds = self.writers["train"], self.config.noise_kinds
        target = self.config.noise / (1 - self.config.noise) * writer.chunks(domain, "clean")
        # small domains do not fill every kind: each begins with another one
        first = int.from_bytes(hashlib.sha256(domain.encode()).digest()[:4], "big") % len(kinds)
        kinds = kinds[first:] + kinds[:first]
        while sum(writer.chunks(domain, kind) for kind in kinds) + 0.5 <= target:
            kind = min(kinds, key=lambda k: writer.chunks(domain, k))
            number = self.counts["noise_documents"]
            key = f"{self.config.seed} {domain} {number}"
            dice = hashlib.sha256(key.encode()).digest()
            # one to four characters per token of a chunk: short enough to hit the share, long
            # enough to fill chunks
            size = min(
                4000,
                (self.config.block_size + 1) * (100 + int.from_bytes(dice[:4], "big") % 300) // 100,
            )
            begin = int.from_bytes(dice[4:8], "big") % len(texts)
            text = _window(texts[begin:] + texts[:begin], size)
            noise = make_noise(kind, text, size, key)
            document = Document(noise, domain, f"noise/{domain}/{kind}/{number}", pile_like, kind)
            self._pack("train", self.tokenizer.encode(noise), document, made=True)
            self.counts["noise_documents"] += 1

    def _finish(self) -> None:
        in_no_chunk = {split: writer.in_no_chunk() for split, writer in self.writers.items()}
        dropped = {split: writer.finish() for split, writer in self.writers.items()}
        lost = sum(sum(domains.values()) for domains in in_no_chunk.values())
        counts = {**self.counts, "used": self.counts["used"] - lost, "in_no_chunk": lost}
        wanted = () if self.stopped else self.config.domains
        read = {
            "counts": {**counts, "skipped": self.skipped},
            "stopped_at_max_tokens": self.stopped,
            "domains_not_found": [name for name in wanted if name not in self.domains_met],
            "passed_over": SOURCES[self.config.source].passed_over(self.config),
        }
        if not self.writers["train"].rows:
            some = sorted(self.domains_met)
            raise DataError(
                f"{self.config.name}: {self.counts['documents']} documents gave no train "
                f"chunk of {self.config.block_size + 1} tokens. {account(read)}. Their domains: "
                f"{', '.join(some[:DOMAINS_SHOWN]) or 'none'}"
                f"{', ...' if some[DOMAINS_SHOWN:] else ''}. Next: a smaller block_size, other "
                "domains, or more text"
            )
        file_name = "tokenizer.json" if self.tokenizer.name == "pythia" else "tokenizer.tiktoken"
        write_bytes(self.partial / file_name, self.tokenizer.file_bytes)
        manifest = self._manifest(file_name, read, dropped, in_no_chunk)
        write_json(self.partial / "manifest.json", manifest, indent=1)
        (self.partial / STATE_FILE).unlink(missing_ok=True)
        os.replace(self.partial, self.folder)
        sync(self.folder.parent)

    def _manifest(
        self,
        tokenizer_file: str,
        read: dict[str, Any],
        dropped: dict[str, int],
        in_no_chunk: dict[str, dict[str, int]],
    ) -> dict[str, Any]:
        """What `manifest.json` says.

        read: what became of the documents. dropped: split -> tokens of its tail that fill no chunk.
        in_no_chunk: split -> domain -> documents that begin there.
        """
        return {
            "format": FORMAT,
            "name": self.config.name,
            "settings": self.settings,
            "settings_digest": self.digest,
            "python": platform.python_version(),
            "tokenizer": {
                "name": self.tokenizer.name,
                "sha256": self.tokenizer.sha256,
                "n_vocab": self.tokenizer.n_vocab,
                "eot": self.tokenizer.eot,
                "file": tokenizer_file,
            },
            "block_size": self.config.block_size,
            "dtype": token_dtype(self.tokenizer.n_vocab).name,
            "seed": self.config.seed,
            **read,
            "splits": {
                split: {
                    "chunks": writer.rows,
                    "rows_per_shard": writer.rows_per_shard,
                    "dropped_tail_tokens": dropped[split],
                    "documents_in_no_chunk": in_no_chunk[split],
                    "documents_over_several_chunks": writer.spanning,
                    "by_domain_and_kind": writer.counts,
                    "shards": writer.files,
                }
                for split, writer in self.writers.items()
            },
        }


def _window(texts: Sequence[str], size: int) -> str:
    """At least `size` characters of the texts where they have them: small documents are joined."""
    joined, length = [], 0
    for text in texts:
        joined.append(text[: 4 * size])
        length += len(joined[-1])
        if length >= size:
            break
    return "\n".join(joined)
