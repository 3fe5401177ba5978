"""Check a submission: `python -m benchmarks.check_submission DATA_DIR EMBEDDINGS_DIR`."""

import argparse
import sys

from clue_ray.errors import StudyError
from clue_ray.transfer.submission import check_submission


def main() -> int:
    """Print what a submission holds, or the rule that it breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder with input/relevant_clients.npy")
    parser.add_argument("embeddings", help="folder with client_ids.npy and embeddings.npy")
    asked = parser.parse_args()
    try:
        found = check_submission(asked.data, asked.embeddings)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"valid: {found['clients']:,} clients of {found['columns']:,} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
