"""python -m aft: prints aft.info()."""

import argparse
import dataclasses
import json

from ._info import info


def main():
    parser = argparse.ArgumentParser(
        prog="python -m aft", description="Prints versions, devices and what the kernels are compiled for: what a bug "
        "report should hold.", epilog="example: python -m aft --json")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the fields of aft.info()")
    arguments = parser.parse_args()
    found = info()
    print(json.dumps(dataclasses.asdict(found)) if arguments.json else found)


if __name__ == "__main__":
    main()
