"""The value store: parquet parts on disk, written while a run goes on, read with DuckDB, larger
than memory. No torch.
"""

from inrun.store.dynamics import dynamics, ledger_over
from inrun.store.ledger import LedgerTotals
from inrun.store.parts import StoreError
from inrun.store.reader import ValueStore
from inrun.store.schema import SCHEMA_VERSION, STORE_FILE
from inrun.store.tables import text as sql_text
from inrun.store.writer import ValueWriter

__all__ = [
    "SCHEMA_VERSION",
    "STORE_FILE",
    "LedgerTotals",
    "StoreError",
    "ValueStore",
    "ValueWriter",
    "dynamics",
    "ledger_over",
    "sql_text",
]
