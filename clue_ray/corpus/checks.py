"""What must hold after the two passes over a log, before a corpus is published."""

from typing import Any

from clue_ray.corpus.profile import ShardTotals
from clue_ray.corpus.survey import Survey
from clue_ray.errors import CorpusError, EventLogError
from clue_ray.spec.specs import CorpusSpec
from clue_ray.storage.files import list_files


def check_shards(totals: ShardTotals, survey: Survey, place: str) -> None:
    """Check that both passes saw the same rows and that the driver can see all shards."""
    if totals.totals["rows"] != survey.good:
        raise EventLogError(
            f"The log changed while it was read: {survey.good:,} usable rows in the first pass, "
            f"{totals.totals['rows']:,} in the second; prepare it again when nothing writes to it."
        )
    present = list_files(place)
    missing = next((name for name in totals.files if name not in present), None)
    if missing:
        raise CorpusError(
            f"Workers wrote {missing} to a disk that this machine cannot see; choose an output on "
            "storage that all nodes share."
        )


def check_conservation(profile: dict[str, Any], spec: CorpusSpec) -> None:
    """Check that every row that was read is an event of the corpus or is counted otherwise."""
    dropped = profile["duplicate_rows"] if spec.duplicates == "drop" else 0
    profile["duplicates_dropped"] = dropped
    parts = ("events", "events_after_cut", "rejected_rows", "omitted_rows", "duplicates_dropped")
    told = sum(profile[name] for name in parts)
    if told != profile["rows"]:
        raise EventLogError(
            f"{profile['rows']:,} rows were read, but the corpus accounts for {told:,}; this is an "
            "error of clue-ray, so report it with the log."
        )


def check_cut(totals: ShardTotals, spec: CorpusSpec) -> None:
    """Check that a cut in time has events before it and that timestamps are dates."""
    cut = spec.split.time
    if cut is None:
        return
    if not totals.histories:
        raise EventLogError(f"No event lies before split.time {cut:%Y-%m-%d}; choose a later cut.")
    if not totals.totals["later"] and totals.is_order():
        raise EventLogError(
            f"Timestamps end at {max(totals.times):g} seconds, in "
            f"{1970 + int(max(totals.times) // 31_556_952)}: they look like positions or like "
            "dates without dashes, so split.time cannot divide them; leave it out."
        )


def check_pairs(profile: dict[str, Any], services: tuple[str, ...]) -> None:
    """Check that at least one user has events in two services, as a positive pair needs."""
    if not any(int(number) >= 2 for number in profile["users_by_services"]):
        raise EventLogError(
            f"None of the {profile['users']:,} users has events in two services (services found: "
            f"{', '.join(services[:10])}); contrastive training pairs the services of a user, "
            "so give logs of at least two services with shared user ids."
        )
