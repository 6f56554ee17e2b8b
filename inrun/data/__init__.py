"""From text to batches: sources -> prepare (tokenise, pack, chunk table) -> corpus (memmap) ->
sampler (stateless).

`inrun.data.prepare.prepare(DataConfig(...))` builds a corpus once; `Corpus.open(folder)` reads it;
`Sampler` says which chunks a step trains on. `docs/data.md` is the data card of the corpora.
"""

from inrun.data import offline, sources  # noqa: F401  (each registers its sources of documents)
