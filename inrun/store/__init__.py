"""The value store: parquet parts on disk, written while a run goes on, read with DuckDB, larger
than memory. No torch.
"""

from inrun.store.compaction import compact
from inrun.store.conversion import convert
from inrun.store.description import STORE_FILE
from inrun.store.dynamics import dynamics, ledger_over
from inrun.store.ledger import LedgerTotals
from inrun.store.parts import StoreError
from inrun.store.quality import Quality
from inrun.store.reader import ValueStore
from inrun.store.schema import SCHEMA_VERSION
from inrun.store.tables import text as sql_text
from inrun.store.verify import Report
from inrun.store.writer import ValueWriter

__all__ = [
    "SCHEMA_VERSION",
    "STORE_FILE",
    "LedgerTotals",
    "Quality",
    "Report",
    "StoreError",
    "ValueStore",
    "ValueWriter",
    "compact",
    "convert",
    "dynamics",
    "ledger_over",
    "sql_text",
]
