"""The store: trials, verdicts and machines in one SQL database.

SQLite in a file by default; PostgreSQL by URL when several machines write. `open_store` creates what is missing and
brings an older database up to date. The modules beside this one: `tables` (what the database holds), `database`
(where it is, its connections and retries), `schema` (the migrations), `store` (records in, records out).
"""

from paperworks.lab.store.database import StoreError
from paperworks.lab.store.store import Store, open_store

__all__ = ["Store", "StoreError", "open_store"]
