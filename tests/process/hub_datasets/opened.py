"""Read datasets and print the rows of each, or what is wrong, as JSON."""

import json
import sys

from server.cli.evaluate.hub_datasets import HubDataset
from server.cli.evaluate.manifests import ManifestError


def rows_or_error(address: str) -> list[tuple[str, str, int]] | str:
    try:
        return [(row.utterance.name, row.utterance.text, len(row.content)) for row in HubDataset(address)]
    except ManifestError as error:
        return str(error)


if __name__ == "__main__":
    print(json.dumps({address: rows_or_error(address) for address in sys.argv[1:]}))
